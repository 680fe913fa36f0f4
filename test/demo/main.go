// Command demo shows, with nothing but this repository and a root shell, what Plinth is for: a real QCOW2 image made from
// real files, served over HTTP on loopback; `plinth standalone` in a temporary directory; a volume from the example
// StorageClass through the CSI socket, mounted; and a second one from the copy that is then local. It prints the commands
// and how long each took, and leaves the machine as it was, also when it fails or is interrupted.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	plinth := flag.String("plinth", "bin/plinth", "the plinth binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *plinth); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, plinth string) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it mounts filesystems and attaches loop devices: run it as root")
	}
	d, err := newDemo(plinth)
	if err != nil {
		return err
	}
	defer func() {
		if cleanErr := d.cleanUp(); err == nil {
			err = cleanErr
		}
	}()
	for _, step := range []func(context.Context) error{d.makeImage, d.serveImage, d.startPlinth, d.firstVolume, d.secondVolume, d.removeAll} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.summarize()
	return nil
}

// command runs a program and returns what it printed on standard output.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which ends its programs
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("interrupted; removing what was made")
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return stdout.String(), nil
}

// copyTree copies the parts of the repository that make the image's content.
func copyTree(from, to string, names ...string) error {
	for _, name := range names {
		info, err := os.Stat(filepath.Join(from, name))
		if err != nil {
			return fmt.Errorf("collect files: %w", err)
		}
		if info.IsDir() {
			err = os.CopyFS(filepath.Join(to, name), os.DirFS(filepath.Join(from, name)))
		} else {
			var content []byte
			if content, err = os.ReadFile(filepath.Join(from, name)); err == nil {
				err = os.WriteFile(filepath.Join(to, name), content, 0o644)
			}
		}
		if err != nil {
			return fmt.Errorf("collect files: %w", err)
		}
	}
	return nil
}

func rounded(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
