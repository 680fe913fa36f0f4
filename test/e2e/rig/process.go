package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a program that runs in the background and logs to a file.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	over chan struct{} // closed when it has ended
	fork bool          // the program is the child of cmd, which only took it into other namespaces
}

// start runs cmd in the background. Its log, in dir, is kept over restarts.
func start(dir, name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), cmd: cmd, over: make(chan struct{}), fork: filepath.Base(cmd.Path) == "nsenter"}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		cmd.Wait()
		close(p.over)
	}()
	return p, nil
}

// endedError says that a process ended which should not: nothing that depends on it is worth waiting for.
type endedError struct{ error }

// running is nil while the process runs, and else an endedError with the end of its log.
func (p *process) running() error {
	select {
	case <-p.over:
		return endedError{fmt.Errorf("%s ended (%s): %s", p.name, p.cmd.ProcessState, tail(p.log, 5))}
	default:
		return nil
	}
}

// kill sends a signal to the program and waits until it has ended.
func (p *process) kill(s unix.Signal) error {
	pid := p.cmd.Process.Pid
	if p.fork {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		if err != nil && p.running() == nil {
			return fmt.Errorf("find the process of %s: %w", p.name, err)
		}
	}
	if p.running() != nil {
		return nil
	}
	if err := unix.Kill(pid, s); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	select {
	case <-p.over:
		return nil
	case <-time.After(time.Minute):
		return fmt.Errorf("%s does not end a minute after %s", p.name, s)
	}
}

func tail(path string, lines int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// output runs a command to its end and returns what it wrote; an error has what it said.
func output(cmd *exec.Cmd) (string, error) {
	var said strings.Builder
	if cmd.Stderr == nil {
		cmd.Stderr = &said
	}
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s%s", strings.Join(cmd.Args, " "), err, out, said.String())
	}
	return string(out), nil
}

// do runs a command of the control plane's machine.
func do(ctx context.Context, name string, args ...string) error {
	_, err := output(exec.CommandContext(ctx, name, args...))
	return err
}
