// Package e2e runs Plinth in a real Kubernetes and does to it what users, administrators and bad luck do. It imports nothing of
// Plinth: what it sees is what they see. README.md says how to run it and what is odd about its cluster.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/resolver"

	"plinth.dev/plinth/test/e2e/rig"
)

var (
	shell      = flag.Bool("shell", false, "start a shell with kubectl in the cluster instead of the tests")
	nodes      = flag.Int("nodes", 3, "nodes of the cluster")
	plinth     = flag.String("plinth", "../../bin/plinth", "the program under test, built static")
	kept       = flag.String("logs", "../../bin/e2e", "directory for what failed tests leave to read")
	kubeconfig = flag.String("kubeconfig", "", "test in this cluster, in which Plinth is installed, instead of one of our own")
	serveAt    = flag.String("serve-images-at", "", "with -kubeconfig: host:port of this machine where the cluster's nodes can reach it")
	testImage  = flag.String("test-image", "plinth.dev/e2e/test:1", "image of the pods: busybox with the sandbox's commands at its place")
)

func TestMain(m *testing.M) {
	flag.StringVar(&namespace, "namespace", "plinth", "with -kubeconfig: namespace that Plinth is in")
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx := context.Background()
	resolver.Register(services{}) // before anybody asks
	var err error
	if *kubeconfig != "" {
		err = useCluster(ctx)
	} else {
		err = makeCluster(ctx, rig.Isolate())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		keepLogs()
		return 1
	}
	if *shell {
		return interact()
	}
	code := m.Run()
	if measuring() && !compared.report(os.Stdout) {
		code = max(code, 1)
	}
	if code != 0 {
		keepLogs()
	}
	return code
}

// measuring says that benchmarks run.
func measuring() bool { return flag.Lookup("test.bench").Value.String() != "" }

// interact is a shell in the cluster; the cluster ends with it.
func interact() int {
	cmd := exec.Command("bash", "-i")
	if flag.NArg() > 0 {
		cmd = exec.Command("bash", "-c", flag.Arg(0))
	}
	cmd.Env = withKubectl()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// keepLogs copies what the parts of the cluster logged to where it outlives them.
func keepLogs() {
	if the.rig == nil {
		return
	}
	to := filepath.Join(*kept, "cluster")
	if err := os.RemoveAll(to); err == nil {
		err = os.CopyFS(to, os.DirFS(the.rig.Logs()))
		fmt.Fprintln(os.Stderr, "what the cluster logged is in", to, errorText(err))
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
