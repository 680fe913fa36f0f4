// Command plinth is the whole of Plinth in one binary: the processes that make volumes from backing images, and the nouns
// (image, volume, disk, node) with which a person looks at them and asks for them.
//
// The nouns have no powers of their own. Images, disks and nodes are read and written through the Kubernetes API, as any
// other client would; volumes are made, mounted and removed through the CSI socket, as an orchestrator would. So whatever
// works here works under Kubernetes, Nomad or Docker Swarm, and nothing is provisioned behind CSI's back.
//
// main parses; run wires; exit.go has the one table of exit codes; output.go is the one place of -o.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"
)

func main() {
	ctx := interruptible()
	code := run(ctx, os.Stdout, os.Stderr, os.Args[1:]...)
	klog.Flush()
	os.Exit(code)
}

// run executes one command line and returns its exit code. An error is printed once, on stderr, without the usage.
func run(ctx context.Context, stdout, stderr io.Writer, args ...string) int {
	root := newRootCommand(&cli{out: stdout, err: stderr, clock: clock.RealClock{}})
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "plinth: %s\n", errorText(ctx, err))
	}
	return exitCode(ctx, err)
}

// interruptible returns a context that the first SIGINT or SIGTERM ends; the second ends the process at once.
func interruptible() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		cancel(fmt.Errorf("%w: %s", errInterrupted, <-signals))
		<-signals
		os.Exit(exitInterrupted)
	}()
	return ctx
}
