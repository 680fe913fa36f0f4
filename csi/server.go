package csi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/provisioner"
)

// DefaultDriverName is the name by which orchestrators know the driver.
const DefaultDriverName = "csi.plinth.dev"

// Options of a Server. Endpoint, Version, and a Controller or a Node are required.
type Options struct {
	Endpoint   string                 // unix:///path of the socket
	DriverName string                 // default DefaultDriverName
	Version    string                 // of Plinth
	Controller provisioner.Controller // nil: the Controller service is not served
	Node       provisioner.Node       // nil: the Node service is not served
	// Ready is asked by Probe: nil when calls can be served; NotReady while starting; any other error when the process
	// should be restarted. nil: always ready.
	Ready func() error
	// Durations of calls in seconds, by the labels method and code. nil: not measured.
	Durations prometheus.ObserverVec
	// StopTimeout is how long Run lets calls finish when its context has ended. Default 10 s.
	StopTimeout time.Duration
	Logger      klog.Logger        // default klog.Background
	Clock       clock.PassiveClock // default the real one
}

func (o *Options) validate() error {
	if o.Controller == nil && o.Node == nil {
		return errors.New("CSI server: neither a controller nor a node to serve")
	}
	if o.Version == "" {
		return errors.New("CSI server: no version")
	}
	if o.DriverName == "" {
		o.DriverName = DefaultDriverName
	}
	if o.Ready == nil {
		o.Ready = func() error { return nil }
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 10 * time.Second
	}
	if o.Logger.IsZero() {
		o.Logger = klog.Background()
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return nil
}

// Server serves CSI on a Unix socket.
type Server struct {
	options Options
	socket  string
	grpc    *grpc.Server
	stop    context.CancelFunc // ends what calls wait for
	serving chan struct{}      // closed when the socket takes calls
}

// New makes a Server. Invalid when the endpoint is no Unix socket.
func New(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	socket, err := socketOf(o.Endpoint)
	if err != nil {
		return nil, err
	}
	observer := &observer{logger: o.Logger, clock: o.Clock, durations: o.Durations}
	s := &Server{
		options: o,
		socket:  socket,
		serving: make(chan struct{}),
		grpc:    grpc.NewServer(grpc.ChainUnaryInterceptor(observer.observe, newLocks(o.Clock).exclude), grpc.StreamInterceptor(observer.observeStream)),
	}
	csi.RegisterIdentityServer(s.grpc, &identity{name: o.DriverName, version: o.Version, ready: o.Ready})
	if o.Controller != nil {
		csi.RegisterControllerServer(s.grpc, &controller{volumes: o.Controller})
		csi.RegisterSnapshotMetadataServer(s.grpc, &metadata{volumes: o.Controller})
	}
	stopping, stop := context.WithCancel(context.Background())
	s.stop = stop
	if o.Node != nil {
		csi.RegisterNodeServer(s.grpc, &node{volumes: o.Node, stopping: stopping})
	}
	return s, nil
}

// Run serves until ctx ends. Then it refuses new calls, ends the waiting of those that wait for a volume, and lets all
// that are at work finish, but not longer than StopTimeout. A Server runs once. Busy when another process answers
// on the socket.
func (s *Server) Run(ctx context.Context) error {
	listener, err := listen(s.socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	close(s.serving)
	s.options.Logger.Info("Serving CSI", "endpoint", s.options.Endpoint, "driver", s.options.DriverName,
		"controller", s.options.Controller != nil, "node", s.options.Node != nil)
	return s.serve(ctx, listener)
}

// Serving returns when the socket takes calls, or with ctx's error.
func (s *Server) Serving(ctx context.Context) error {
	select {
	case <-s.serving:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("serve CSI on %s: %w", s.socket, ctx.Err())
	}
}

func (s *Server) serve(ctx context.Context, listener net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- s.grpc.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve CSI on %s: %w", s.socket, err)
	case <-ctx.Done():
	}
	s.stop()
	stopped := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(s.options.StopTimeout):
		s.options.Logger.Info("Calls are still at work; they are left behind", "after", s.options.StopTimeout)
		go s.grpc.Stop() // waits for calls whose callers have gone
	}
	return nil
}
