package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
)

// readyTimeout bounds how long /readyz waits before it answers no.
const readyTimeout = time.Second

// Times that whoever asks has: nobody proves who it is, and must not keep connections.
var requestTimeout = 10 * time.Second // to send all of a request; replaced in tests

const (
	answerTimeout = time.Minute     // to take the answer
	idleTimeout   = 2 * time.Minute // between two requests
)

// HTTPListenHelp is the help of --http-listen.
const HTTPListenHelp = "`address` for /healthz, /readyz and /metrics, e.g. 127.0.0.1:9280 (default: none)"

// HTTP is the Part that serves what monitors ask for: /healthz, /readyz and /metrics. None of it tells or changes anything that
// needs an account.
type HTTP struct {
	address string // "": not served
	handler http.Handler
}

// NewHTTP makes the server. address is what --http-listen says; "" serves nothing. ready returns, or tells why not, within its context's time.
func NewHTTP(address string, metrics prometheus.Gatherer, ready func(context.Context) error) *HTTP {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	return &HTTP{address: address, handler: mux}
}

// CheckHTTPListen refuses an address that cannot be listened on; "" serves nothing. Invalid.
func CheckHTTPListen(address string) error {
	if address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return program.FlagError("http-listen", "%w; write host:port, e.g. 127.0.0.1:9280", err)
	}
	return nil
}

// Run serves until ctx ends.
func (s *HTTP) Run(ctx context.Context) error {
	if s.address == "" {
		return nil
	}
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		return backingimage.Errorf(backingimage.Invalid, "--http-listen: %w", err)
	}
	klog.FromContext(ctx).Info("Serving /healthz, /readyz and /metrics", "address", l.Addr())
	server := &http.Server{Handler: s.handler, ReadTimeout: requestTimeout, WriteTimeout: answerTimeout, IdleTimeout: idleTimeout}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http on %s: %w", s.address, err)
	}
	return nil
}
