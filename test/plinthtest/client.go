package plinthtest

import (
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"plinth.dev/plinth/backingimage/store"
)

// Client reads and writes the objects of the process's API, for what the CLI does not tell.
func (p *Process) Client(tb testing.TB) *store.Client {
	tb.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig)
	must(tb, err)
	cfg.QPS = -1
	client, err := store.NewClient(cfg)
	must(tb, err)
	return client
}
