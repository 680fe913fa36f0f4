// Package embedded is a Kubernetes API in this process: etcd and the API server for custom resources, without pods,
// nodes or anything else of a cluster. It lets one machine run the same controllers and agents that a cluster runs, and
// lets kubectl talk to them.
//
// What is kept lies in a data directory:
//
//	kubeconfig                  for kubectl and for "plinth node --kubeconfig"; readable by its owner only
//	control-plane/              0700
//	    lock                    held (flock) while a process serves this directory; contains its process ID
//	    token                   the bearer token of who may do everything
//	    join/                   the tokens of nodes, which may do little (see access.go), and how they get here (see package join)
//	    tls.pem                 the server's key and self-signed certificate
//	    address                 where the API listened last, so that a kubeconfig outlives a restart
//	    etcd.sock, etcd/        etcd's only socket, and its data
//	    etcd.unfinished         there while etcd makes its data for the first time
//
// etcd has one member and one client. It listens on the Unix socket alone: there is no peer listener, since no second
// member can join, and no TCP port at all. The API listens with TLS, on a loopback address unless it is told otherwise; who
// has no token gets nothing at all.
//
// The API server is the generic one of k8s.io/apiserver, but neither its option structs nor its Run method are used:
// they expect a cluster around them (delegated authentication, priority and fairness, a core informer), and Run ends
// the process when it is stopped at an unlucky moment. So this package builds the configuration field by field, serves
// the handler with net/http, and adds what a bare server lacks: see discovery.go.
//
// Two things that a cluster does are missing. Nothing collects garbage: an object whose owner is deleted stays. And there are
// no core kinds: no Secret, no Event, no Lease.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/store/join"
)

// Options of a Server.
type Options struct {
	// Dir is the data directory; required. It is created, 0700, when it is missing.
	Dir string
	// Listen is the API's address, host:port; the host is "localhost" or an IP address. Port 0 means the port of the last run
	// if it is free, otherwise any. "" means 127.0.0.1:0.
	Listen string
	// Advertise is the host, an IP address or a DNS name, at which other machines reach the API. "" means the host of Listen;
	// required when that is every address of the machine, and without meaning when it is a loopback address.
	Advertise string
	// CRDs has the definitions (*.yaml, anywhere in it) that Start installs, or updates when they differ. nil means none.
	CRDs fs.FS
	// Clock tells whether the certificate is about to expire. nil means the real one.
	Clock clock.PassiveClock
}

// validate fills defaults and reads what can be read without changing anything.
func (o *Options) validate() (layout, []*apiextensionsv1.CustomResourceDefinition, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if err := validateListen(o.Listen, o.Advertise); err != nil {
		return layout{}, nil, err
	}
	dir, err := newLayout(o.Dir)
	if err != nil {
		return layout{}, nil, err
	}
	crds, err := readCRDs(o.CRDs)
	return dir, crds, err
}

// Server is the control plane of one data directory.
type Server struct {
	opts Options
	dir  layout
	crds []*apiextensionsv1.CustomResourceDefinition

	compactEvery time.Duration // see storage.go

	mu      sync.Mutex // held by Start and Stop
	started bool
	undo    []undo // what Stop must end, in the order it was begun

	credentials credentials
	address     string // where this process reaches the API, host:port
	others      string // where others do
	joining     *join.Directory
	api         *apiServer

	ended chan struct{} // closed when the server died or was stopped
	once  sync.Once
	cause error // why it died; nil when it was stopped
}

// undo ends something that Start began. It is called again when it failed.
type undo struct {
	what string
	end  func(context.Context) error
}

// New checks the options. It starts and changes nothing.
func New(o Options) (*Server, error) {
	dir, crds, err := o.validate()
	if err != nil {
		return nil, err
	}
	return &Server{opts: o, dir: dir, crds: crds, compactEvery: compactEvery, joining: join.Open(dir.joining), ended: make(chan struct{})}, nil
}

// Start returns when the API answers, the CRDs are established and discovery shows them, and the kubeconfig is written.
// When it fails, or ctx ends first, everything is stopped again. The server's life does not depend on ctx afterwards.
// InUse when another process serves the directory or another program has the port. It can be called once.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return errors.New("start embedded control plane: it was started before; make a new one")
	}
	s.started = true
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"prepare the data directory", s.prepare},
		{"load credentials", s.loadCredentials},
		{"start etcd", s.startEtcd},
		{"start the API server", s.startAPI},
		{"install the resource definitions", s.installCRDs},
		{"tell others how to join", s.announce},
		{"write the kubeconfig", s.writeKubeconfig},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return errors.Join(fmt.Errorf("start embedded control plane: %s: %w", step.what, err), s.abandon())
		}
		klog.FromContext(ctx).V(2).Info("Started a part of the embedded control plane", "step", step.what, "duration", time.Since(began))
	}
	return nil
}

// A start takes half a second, and more on a busy machine; what takes longer than startTime is stuck. stopTime is for
// cleaning up after a start that failed.
const (
	startTime = 2 * time.Minute
	stopTime  = 10 * time.Second
)

func (s *Server) abandon() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	return s.stop(ctx)
}

// RESTConfig is for clients in this process, which are not throttled. Call it after Start.
func (s *Server) RESTConfig() *rest.Config {
	return &rest.Config{
		Host:            "https://" + s.address,
		BearerToken:     s.credentials.token,
		TLSClientConfig: rest.TLSClientConfig{CAData: s.credentials.certificate},
		QPS:             -1,
	}
}

// Kubeconfig is the path of the kubeconfig that Start writes.
func (s *Server) Kubeconfig() string { return s.dir.kubeconfig }

// Wait returns nil when the server was stopped, and an error when some part of it died by itself. The caller must call
// Stop even then; what is acknowledged is on disk in any case.
func (s *Server) Wait() error {
	<-s.ended
	return s.cause
}

// Stop ends everything in order: the API refuses new requests and ends watches, running requests finish, etcd closes its
// files, the lock is released. When ctx ends first, Stop returns an error that says what it waited for; it can be called again.
// A server that never started, or is stopped, is stopped at once.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stop(ctx)
}

func (s *Server) stop(ctx context.Context) error {
	s.end(nil)
	for n := len(s.undo) - 1; n >= 0; n-- {
		if err := s.undo[n].end(ctx); err != nil {
			return fmt.Errorf("stop embedded control plane: %s: %w", s.undo[n].what, err)
		}
		s.undo = s.undo[:n]
	}
	return nil
}

// end is the one place where the server's life is declared over.
func (s *Server) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.ended)
	})
}

// onStop adds what Stop must end before all that was added earlier.
func (s *Server) onStop(what string, end func(context.Context) error) {
	s.undo = append(s.undo, undo{what: what, end: end})
}

// invalid is an error in the options.
func invalid(format string, args ...any) error {
	return backingimage.Errorf(backingimage.Invalid, format, args...)
}
