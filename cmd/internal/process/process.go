// Package process is what Plinth's long-lived processes have in common, whichever parts they join: how parts run together
// and stop, how the API is asked, and what monitors are told.
package process

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
)

// Part runs until its context ends.
type Part interface{ Run(context.Context) error }

// Run runs parts until ctx ends or one of them fails, and returns when all have ended.
func Run(ctx context.Context, parts ...Part) error {
	group, running := errgroup.WithContext(ctx)
	for _, p := range parts {
		group.Go(func() error { return p.Run(running) })
	}
	return group.Wait()
}

// StopTimeout bounds a gentle stop.
const StopTimeout = 20 * time.Second

// Stopped runs one step of a stop within its time, whatever ended ctx, and names it in its error.
func Stopped(ctx context.Context, what string, stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), StopTimeout)
	defer cancel()
	if err := stop(ctx); err != nil {
		return fmt.Errorf("stop %s: %w", what, err)
	}
	return nil
}

// ReadyNow asks ready without much of a wait, for those who ask often: NotReady while the process starts.
func ReadyNow(ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := ready(ctx); err != nil {
		return backingimage.Errorf(backingimage.NotReady, "plinth is starting: %w", err)
	}
	return nil
}

// API is how a process asks the API that cfg names; requests counts what it asks. The client has no rate limit of its own: the loops limit
// themselves, and a server that has too much to do says so (API Priority and Fairness).
func API(cfg *rest.Config, who string) (api *rest.Config, requests prometheus.Collector) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "plinth_api_requests_total", Help: "Requests to the Kubernetes API that were answered, by HTTP method and status code.",
	}, []string{"method", "code"})
	api = rest.CopyConfig(cfg)
	api.QPS = -1
	api.UserAgent = who + "/" + program.Version
	api.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		return promhttp.InstrumentRoundTripperCounter(counter, rt)
	})
	return api, counter
}

// NewRegistry makes a registry with what every Go process tells of itself.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// NewRPCSeconds makes the histogram of CSI calls.
func NewRPCSeconds(r prometheus.Registerer) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "plinth_csi_rpc_seconds", Help: "Duration of CSI calls, by method and gRPC code.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
	}, []string{"method", "code"})
	r.MustRegister(h)
	return h
}
