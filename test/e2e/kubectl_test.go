package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// withKubectl is an environment in which kubectl is that of the cluster.
func withKubectl() []string {
	return append(os.Environ(), "KUBECONFIG="+the.kubeconfig, "PATH="+filepath.Dir(the.kubectl)+":"+os.Getenv("PATH"))
}

// documented returns the commands that a section of a how-to has, as users have them before them.
func documented(page, section string) (string, error) {
	text, err := os.ReadFile(filepath.Join("../../docs/how-to", page))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(text), "\n## "+section+"\n")
	rest, _, _ = strings.Cut(rest, "\n## ")
	_, rest, _ = strings.Cut(rest, "\n```sh\n")
	commands, _, found := strings.Cut(rest, "\n```")
	if !found {
		return "", fmt.Errorf("section %q of %s has no commands", section, page)
	}
	return commands, nil
}

// follow runs commands in a shell with kubectl; what they write is in dir.
func follow(ctx context.Context, dir, commands string) error {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", commands)
	cmd.Dir, cmd.Env = dir, withKubectl()
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s\nof\n%s", err, said, commands)
	}
	return nil
}
