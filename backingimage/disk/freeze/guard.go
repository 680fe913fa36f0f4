package freeze

import (
	"context"
	"fmt"
	"io"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/command"
)

// script is the guard's: $1 is the limit in seconds, the rest are mount points. A word on standard input means that all is
// well. After the limit it waits on: a freeze that took longer than that to come about is thawed when we are gone.
const script = `trap '' TERM INT HUP
limit=$1
shift
thaw() { for point; do fsfreeze --unfreeze "$point"; done; }
[ "$(timeout -s KILL "$limit" cat)" = done ] && exit
thaw "$@"
[ "$(cat)" = done ] || thaw "$@"
`

// guard is the process that thaws when we cannot.
type guard struct{ shell *command.Survivor }

func startGuard(points []string) (*guard, error) {
	if err := command.Need("timeout", "cat", "fsfreeze"); err != nil { // found missing by the guard it would be too late
		return nil, fmt.Errorf("guard a frozen filesystem: %w", err)
	}
	seconds := fmt.Sprint(int(limit.Seconds()))
	shell, err := command.Survive("sh", append([]string{"-c", script, "sh", seconds}, points...)...)
	if err != nil {
		return nil, fmt.Errorf("guard a frozen filesystem: %w", err)
	}
	return &guard{shell}, nil
}

// dismiss tells the guard that nothing is frozen any more.
func (g *guard) dismiss(ctx context.Context) {
	_, err := io.WriteString(g.shell.Stdin, "done\n")
	if cerr := g.shell.Stdin.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "The guard of a frozen filesystem ended before its time")
	}
	go g.shell.Wait() // takes a moment, and what it says no longer matters
}
