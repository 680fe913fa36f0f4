package command_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
)

// mustSandbox makes a sandbox with the files /in and /out.
func mustSandbox(tb testing.TB) (s *command.Sandbox, out string) {
	tb.Helper()
	dir := tb.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	for _, path := range []string{in, out} {
		if err := os.WriteFile(path, []byte("text\n"), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return &command.Sandbox{
		Reads: map[string]string{"/in": in}, Writes: map[string]string{"/out": out},
		CPU: 10 * time.Second, MemoryBytes: 1 << 30, LargestBytes: 1 << 20,
	}, out
}

func TestASandboxHasWhatItWasGivenAndNothingElse(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	t.Setenv("PASSWORD", "secret")
	for script, want := range map[string]string{
		"cat /in":                 "text\n",
		"id -u; id -g":            "65534\n65534\n",
		"echo $$":                 "2\n", // 1 is bubblewrap
		"env | grep -c PASSWORD":  "",
		"cat /etc/passwd":         "",
		"ls /proc /sys /root":     "",
		"echo x > /in":            "",
		"echo x > /usr/x":         "",
		"echo x > /x":             "",
		"echo x > /out; cat /out": "x\n",
		"ls / | grep -x -e etc -e root -e tmp -e home -e proc": "",
		fmt.Sprintf("echo x > /dev/tcp/127.0.0.1/%d", port):    "",
		"mount -t tmpfs x /usr":                                "",
	} {
		s, _ := mustSandbox(t)
		got, err := s.Run(context.Background(), "bash", "-c", script)
		if want == "" && err == nil || want != "" && (err != nil || got != want) {
			t.Errorf("%s: got %q, %v", script, got, err)
		}
	}
}

func TestASandboxBoundsWhatItsProgramUses(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		change func(*command.Sandbox)
	}{
		"a large file": {"yes | head -c 2000000 > /out", nil},
		"processors":   {"while :; do :; done", func(s *command.Sandbox) { s.CPU = time.Second }},
		"memory":       {"x=$(yes 0123456789 | head -c 100000000)", func(s *command.Sandbox) { s.MemoryBytes = 64 << 20 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, out := mustSandbox(t)
			if c.change != nil {
				c.change(s)
			}
			_, err := s.Run(context.Background(), "bash", "-c", "set -e -o pipefail; "+c.script)
			if err == nil || command.ExceededCPU(err) != (name == "processors") {
				t.Errorf("got %v", err)
			}
			if info, err := os.Stat(out); err != nil || info.Size() > 1<<20 {
				t.Errorf("the file has %d bytes, %v", info.Size(), err)
			}
		})
	}
}

func TestASandboxEndsWithItsContext(t *testing.T) {
	s, _ := mustSandbox(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := s.Run(ctx, "bash", "-c", "trap '' TERM INT; sleep 1000 & sleep 1000")
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 500*time.Second {
		t.Errorf("got %v after %s", err, time.Since(start))
	}
}

func TestAProgramsOutputCanBeFollowed(t *testing.T) {
	s, _ := mustSandbox(t)
	var b strings.Builder
	s.Output = &b
	if out, err := s.Run(context.Background(), "seq", "100000"); err != nil || out != "" || !strings.HasSuffix(b.String(), "\n100000\n") || !strings.HasPrefix(b.String(), "1\n2\n") {
		t.Errorf("got %d bytes, %q, %v", b.Len(), out, err)
	}
}

func TestWhatIsNotInstalledIsNamed(t *testing.T) {
	if err := command.Ready("qemu-img"); err != nil {
		t.Fatal(err)
	}
	if err := command.Ready("qemu-img-of-tomorrow"); !backingimage.Is(err, backingimage.Unsupported) || !strings.Contains(err.Error(), "qemu-img-of-tomorrow is not installed") {
		t.Errorf("got %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := command.Ready(); !backingimage.Is(err, backingimage.Unsupported) || !strings.Contains(err.Error(), "bwrap") {
		t.Errorf("got %v", err)
	}
}
