package plinthtest

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Options of a Standalone. The zero value is a good one.
type Options struct {
	NodeName string        // default "test-node"
	Pool     string        // size of the pool, default "8Gi" (sparse: it costs what is written)
	Args     []string      // further arguments of `plinth standalone`; a repeated flag's last value counts
	Ready    time.Duration // how long it may take to become ready; default 60 s
}

// Standalone is a running `plinth standalone`.
type Standalone struct{ Process }

// Start starts `plinth standalone` and returns when it is ready. The test ends when that does not happen; without root it
// is skipped.
func Start(tb testing.TB, o Options) *Standalone {
	tb.Helper()
	if o.NodeName == "" {
		o.NodeName = "test-node"
	}
	s := &Standalone{newProcess(tb, "standalone", o)}
	s.Kubeconfig = filepath.Join(s.DataDir, "kubeconfig")
	s.run(o)
	return s
}

// Node is a running `plinth node`. Its CLI may do what the node may, and talks to the node's own CSI socket.
type Node struct{ Process }

// StartNode starts `plinth node`, which joins the Standalone, and returns when it is ready. o.NodeName is required.
func (s *Standalone) StartNode(o Options) *Node {
	s.tb.Helper()
	n := &Node{newProcess(s.tb, "node", o)}
	n.Kubeconfig = filepath.Join(n.Dir, "kubeconfig")
	if err := os.WriteFile(n.Kubeconfig, []byte(s.MustCLI("node", "join-config", o.NodeName)), 0o600); err != nil {
		s.tb.Fatal(err)
	}
	n.run(o, "--kubeconfig", n.Kubeconfig)
	return n
}
