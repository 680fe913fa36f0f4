// Package embeddedtest gives tests a real Kubernetes API with Plinth's kinds.
package embeddedtest

import (
	"context"
	"os"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/deploy"
)

// MustStart starts an empty control plane that stops when the test ends, and returns how to reach it.
func MustStart(tb testing.TB) *rest.Config {
	tb.Helper()
	return MustStartIn(tb, mustTempDir(tb)).RESTConfig()
}

// MustStartIn starts a control plane in a data directory, which a test may use again after it stopped the server.
func MustStartIn(tb testing.TB, dir string) *embedded.Server {
	tb.Helper()
	server, err := embedded.New(embedded.Options{Dir: dir, CRDs: deploy.CRDs})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := server.Start(ctx); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { stop(tb, server) })
	return server
}

func stop(tb testing.TB, server *embedded.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		tb.Error(err)
	}
}

// mustTempDir is not tb.TempDir, whose path grows with the test's name past what a Unix socket can have.
func mustTempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "plinth")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
