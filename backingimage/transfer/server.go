package transfer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/store"
)

// Options of a Server.
type Options struct {
	// MaxRequests at once; more are answered 503. 128 by default.
	MaxRequests int
	// BytesPerSecond of images' contents that are given away at the most, to all callers together; 0 is no limit.
	BytesPerSecond int64
	// Shares are the copies that this process is receiving from peers; nil when it does not give them away.
	Shares *fetch.Shares
	// Snapshots of this node, for others; nil when there are none.
	Snapshots Snapshots
	// LocalDir is where the server has a socket without TLS as well, see there; "" for none.
	LocalDir string
	Clock    clock.Clock
	Metrics  *Metrics // may be nil
}

func (o Options) withDefaults() Options {
	if o.MaxRequests == 0 {
		o.MaxRequests = 128
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return o
}

// Server is the HTTPS server of an agent.
type Server struct {
	listener net.Listener
	identity *Identity
	store    *store.Store
	disks    *disk.Set // by UUID
	uploads  *Uploads
	options  Options
	handler  http.Handler
	places   chan struct{}           // one for each request at work
	lane     *lane                   // that contents go out through
	given    *given                  // what peers got of them lately
	asking   flowcontrol.RateLimiter // of the API server, on behalf of whom we do not know yet
}

// connections that there may be for each request at work: those that wait for their next are many more.
const connections = 4

// Times that a connection has.
const (
	headerTimeout = 10 * time.Second // for a request's header
	idleTimeout   = 2 * time.Minute  // between two requests
	writeTimeout  = time.Minute      // for one piece of an answer
)

// restTime is for how long the rest of a request may come that has been answered. Replaced in tests.
var restTime = 10 * time.Second

// NewServer makes the server of an agent, on a listener that it closes in the end. It starts nothing.
func NewServer(l net.Listener, id *Identity, s *store.Store, disks *disk.Set, u *Uploads, o Options) (*Server, error) {
	srv := &Server{listener: l, identity: id, store: s, disks: disks, uploads: u, options: o.withDefaults()}
	srv.lane, srv.given = newLane(srv.options.BytesPerSecond), newGiven(srv.options.Clock)
	srv.places = make(chan struct{}, srv.options.MaxRequests)
	srv.asking = flowcontrol.NewTokenBucketRateLimiter(10, 50)
	tus, err := srv.newTus()
	if err != nil {
		return nil, fmt.Errorf("make the upload handler: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v1/uploads/{uid}", srv.admitted("upload", srv.byToken, tus.ServeHTTP))
	mux.Handle("GET /v1/images/{uid}/manifest", srv.admitted("manifest", srv.byEither, srv.serveManifest))
	mux.Handle("GET /v1/images/{uid}/data", srv.admitted("data", srv.byEither, srv.serveData))
	mux.Handle("GET /v1/images/{uid}/record", srv.admitted("record", srv.byKey, srv.serveRecord))
	mux.Handle("GET /v1/images/{uid}/have", srv.admitted("have", srv.byKey, srv.serveHave))
	mux.Handle("GET /v1/snapshots/{uid}/manifest", srv.admitted("manifest", srv.snapshotByKey, srv.serveManifest))
	mux.Handle("GET /v1/snapshots/{uid}/data", srv.admitted("data", srv.snapshotByKey, srv.serveData))
	mux.Handle("GET /v1/snapshots/{uid}/record", srv.admitted("record", srv.snapshotByKey, srv.serveRecord))
	mux.Handle("GET /v1/snapshots/{uid}/have", srv.admitted("have", srv.snapshotByKey, srv.serveHave))
	mux.Handle("GET /v1/snapshots/{uid}/extents", srv.admitted("extents", srv.snapshotByEither, srv.serveExtents))
	srv.handler = srv.limited(mux)
	return srv, nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if err := s.store.Synced(ctx); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Serving peers", "address", s.listener.Addr(), "publicKeyHash", s.identity.PublicKeyHash())
	server := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 32 << 10,
		ErrorLog:    log.New(io.Discard, "", 0), // broken handshakes are the caller's affair
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	context.AfterFunc(ctx, func() { server.Close() })
	var group errgroup.Group
	if local := s.local(ctx); local != nil {
		group.Go(func() error { return s.serve(server, local) })
	}
	group.Go(func() error {
		return s.serve(server, tls.NewListener(s.bounded(s.listener), s.identity.serverConfig()))
	})
	return group.Wait()
}

// local takes the local socket. Without one, all come over the network.
func (s *Server) local(ctx context.Context) net.Listener {
	if s.options.LocalDir == "" {
		return nil
	}
	l, err := listenLocal(s.options.LocalDir, s.identity.PublicKeyHash())
	if err != nil {
		klog.FromContext(ctx).Info("Programs on this machine come over TLS", "reason", err.Error())
		return nil
	}
	return s.bounded(l)
}

func (s *Server) bounded(l net.Listener) net.Listener {
	return netutil.LimitListener(l, connections*s.options.MaxRequests)
}

// serve serves a listener; when that fails, the other one ends as well.
func (s *Server) serve(server *http.Server, l net.Listener) error {
	defer server.Close()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve peers on %s: %w", l.Addr(), err)
	}
	return nil
}

// limited bounds the requests at work, and how long a caller may keep a connection by not sending what its request should still have: the
// library waits for that.
func (s *Server) limited(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(restTime)) }() // a connection that cannot have one has its own
		select {
		case s.places <- struct{}{}:
			defer func() { <-s.places }()
			h.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "this agent serves as many requests as it may; try again", http.StatusServiceUnavailable)
		}
	})
}

// counted keeps the status of an answer, and bounds how long a piece of it may take.
type counted struct {
	http.ResponseWriter
	status int
}

// Unwrap is how http.ResponseController finds what is below.
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (c *counted) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (c *counted) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	_ = http.NewResponseController(c.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTimeout)) // a connection that cannot have one has its own
	return c.ResponseWriter.Write(p)
}

func (s *Server) count(route string, c *counted) {
	s.options.Metrics.requests.WithLabelValues(route, strconv.Itoa(max(c.status, http.StatusOK))).Inc()
}
