package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// patience is how long a test waits for anything: long, because it is the end of a test and no measure.
const patience = 3 * time.Minute

// kubectl runs it and returns what it printed.
func kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, the.kubectl, append([]string{"--kubeconfig", the.kubeconfig}, args...)...)
	var said strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &said
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s%s", strings.Join(args, " "), err, out, said.String())
	}
	return string(out), nil
}

func mustKubectl(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := kubectl(context.Background(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually repeats a look until it finds nothing wrong; when the time is over, it returns what was wrong last.
func eventually(ctx context.Context, limit time.Duration, what string, look func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := fmt.Errorf("nothing was seen")
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %w", limit, what, last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// must waits for what a test cannot go on without.
func must(t testing.TB, what string, look func(context.Context) error) {
	t.Helper()
	if err := eventually(t.Context(), patience, what, look); err != nil {
		t.Fatal(err)
	}
}
