// Command plinth is the whole of Plinth in one binary: the processes that make volumes from backing images, and the nouns
// (image, volume, disk, node) with which a person looks at them and asks for them.
//
// The nouns have no powers of their own. Images, disks and nodes are read and written through the Kubernetes API, as any
// other client would; volumes are made, mounted and removed through the CSI socket, as an orchestrator would. So whatever
// works here works under Kubernetes, Nomad or Docker Swarm, and nothing is provisioned behind CSI's back.
//
// main parses; output.go is the one place of -o; the table of exit codes is in cmd/internal/program. Standalone, which links the
// API server, is a binary of its own, so that no other command pays for that at every start. The agent (plinth node) is in this one: what it
// adds, mostly the clients of object stores and registries, costs a command 13 ms and 12 MB, and an idle agent has 48 MB in all.
package main

import (
	"context"
	"io"
	"os"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/cmd/internal/program"
)

func main() {
	ctx := program.Interruptible()
	code := run(ctx, os.Stdout, os.Stderr, os.Args[1:]...)
	klog.Flush()
	os.Exit(code)
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, stdout, stderr io.Writer, args ...string) int {
	root := newRootCommand(&cli{out: stdout, err: stderr, clock: clock.RealClock{}})
	root.SetOut(stdout)
	root.SetErr(stderr)
	return program.Run(ctx, root, args)
}
