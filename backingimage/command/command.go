// Package command is the one place that runs external programs (mkfs, blkid, qemu-img …): under a context, with
// LC_ALL=C, with an empty standard input, and with what the program said kept in a typed error.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
)

// Error is a program that ran and failed.
type Error struct {
	Name   string // the program
	Code   int    // its exit code; -1 when a signal ended it
	Stderr string // the end of what it wrote to standard error, trimmed
}

func (e *Error) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s: exit code %d", e.Name, e.Code)
	}
	return fmt.Sprintf("%s: exit code %d: %s", e.Name, e.Code, e.Stderr)
}

// maxOutput bounds what is kept of a program's output, in bytes.
const maxOutput = 64 << 10

// outputWait is for how long the output of a program that has ended is waited for that another, which it started, still holds. Replaced in
// tests.
var outputWait = 5 * time.Second

// Run runs a program and returns its standard output. A program that is not installed is Unsupported, one that fails
// is an *Error, one that ctx ended is ctx's error.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	return run(ctx, exec.CommandContext(ctx, name, args...), name, nil, append(os.Environ(), "LC_ALL=C"))
}

// run runs a program that errors call name. Its output goes to out, or is returned when that is nil.
func run(ctx context.Context, cmd *exec.Cmd, name string, out io.Writer, environment []string) (string, error) {
	klog.FromContext(ctx).V(4).Info("Running", "program", name, "arguments", cmd.Args[1:])
	cmd.Env, cmd.WaitDelay = environment, outputWait
	var stdout, stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if out != nil {
		cmd.Stdout = out
	}
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		return "", fmt.Errorf("run %s: %w", name, ctx.Err())
	}
	if errors.Is(err, exec.ErrNotFound) {
		return "", notInstalled(name)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return stdout.String(), &Error{Name: name, Code: exit.ExitCode(), Stderr: strings.TrimSpace(stderr.String())}
	}
	return "", fmt.Errorf("run %s: %w", name, err)
}

// ExitCode returns the exit code of a program that failed, or 0 when err is no such failure.
func ExitCode(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// Stderr returns the end of what a program that failed wrote to standard error, "" when err is no such failure.
func Stderr(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Stderr
	}
	return ""
}

// tail keeps the last maxOutput bytes written to it.
type tail struct{ bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	n, err := t.Buffer.Write(p)
	if over := t.Len() - maxOutput; over > 0 {
		t.Next(over)
	}
	return n, err
}

// Need is Unsupported when one of the programs is not installed.
func Need(names ...string) error {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			return notInstalled(name)
		}
	}
	return nil
}

func notInstalled(name string) error {
	return backingimage.Errorf(backingimage.Unsupported, "%s is not installed on this machine; install the package that has it", name)
}

// Survivor is a program that goes on when this process dies. It notices by the end of its standard input.
type Survivor struct {
	Stdin io.WriteCloser
	cmd   *exec.Cmd
}

// Survive starts a program in a process group of its own, so that what is sent to ours does not reach it. Its output is
// thrown away. A program that is not installed is Unsupported.
func Survive(name string, args ...string) (*Survivor, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		return nil, notInstalled(name)
	} else if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &Survivor{Stdin: stdin, cmd: cmd}, nil
}

// Wait returns when the program has ended; close Stdin first.
func (s *Survivor) Wait() error { return s.cmd.Wait() }
