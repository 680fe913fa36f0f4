package plinthtest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"plinth.dev/plinth/test/leftover"
)

// Process is a running plinth with a data directory, a pool and a CSI socket of its own.
type Process struct {
	Binary     string
	Dir        string // a directory for the test's own files; mounts below it are cleaned up
	DataDir    string
	Socket     string // path of the CSI socket
	Kubeconfig string // of the CLI's API
	HTTP       string // host:port of /healthz, /readyz and /metrics
	NodeName   string

	tb      testing.TB
	command string        // of plinth: what runs
	ready   time.Duration // how long it may take to become ready
	args    []string
	log     string
	process *exec.Cmd
	exited  chan struct{}
}

// newProcess gives a process its places. It starts nothing; without root the test is skipped.
func newProcess(tb testing.TB, command string, o Options) Process {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skipf("left out without root: plinth %s mounts its pool and attaches loop devices", command)
	}
	dir := mustTempDir(tb)
	p := Process{
		Binary: MustBinary(tb), Dir: dir, DataDir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "csi.sock"), HTTP: MustFreeAddress(tb), NodeName: o.NodeName,
		tb: tb, command: command, ready: o.Ready, log: filepath.Join(dir, "plinth.log"),
	}
	if p.ready == 0 {
		p.ready = 60 * time.Second
	}
	return p
}

// run starts the process for the first time.
func (p *Process) run(o Options, args ...string) {
	p.tb.Helper()
	pool := o.Pool
	if pool == "" {
		pool = "8Gi"
	}
	p.args = slices.Concat([]string{
		p.command,
		"--data-dir", p.DataDir,
		"--csi-endpoint", "unix://" + p.Socket,
		"--node-name", p.NodeName,
		"--pool-size", pool,
		"--http-listen", p.HTTP,
		"--allow-source-cidr", "127.0.0.0/8",
	}, args, o.Args)
	p.tb.Cleanup(p.cleanUp)
	p.start()
}

// mustTempDir makes a directory whose path is short enough for a socket in it, and resolved, as the kernel reports it.
func mustTempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "plinth-test-")
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		tb.Fatalf("make a directory for the test: %v", err)
	}
	return dir
}

// MustFreeAddress is host:port of loopback where nothing listens just now.
func MustFreeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("find a free port: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start runs the process and waits for its ready line.
func (p *Process) start() {
	p.tb.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.tb.Fatal(err)
	}
	defer log.Close()
	before, err := log.Seek(0, 2)
	if err != nil {
		p.tb.Fatal(err)
	}
	p.process = exec.Command(p.Binary, p.args...)
	p.process.Stdout, p.process.Stderr = log, log
	p.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.process.Start(); err != nil {
		p.tb.Fatalf("start %s: %v", p.Binary, err)
	}
	p.exited = make(chan struct{})
	go func(started *exec.Cmd, exited chan struct{}) {
		_ = started.Wait() // its state says how it ended
		close(exited)
	}(p.process, p.exited)
	if err := p.waitReady(before); err != nil {
		p.tb.Fatalf("plinth %s did not become ready: %v\n%s", p.command, err, p.Log())
	}
}

// waitReady returns when the log, from an offset on, has the ready line.
func (p *Process) waitReady(from int64) error {
	deadline := time.Now().Add(p.ready)
	for time.Now().Before(deadline) {
		log, err := os.ReadFile(p.log)
		if err != nil {
			return err
		}
		if readyLine(log[from:]) {
			return nil
		}
		select {
		case <-p.exited:
			return fmt.Errorf("it ended: %s", p.process.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New("no ready line in " + p.ready.String())
}

func readyLine(log []byte) bool {
	for line := range bytes.Lines(log) {
		if bytes.HasPrefix(line, []byte("plinth is ready")) && bytes.HasSuffix(line, []byte("\n")) {
			return true
		}
	}
	return false
}

// Signal sends the process a signal that does not end it, such as SIGSTOP.
func (p *Process) Signal(s syscall.Signal) {
	p.tb.Helper()
	if err := p.process.Process.Signal(s); err != nil {
		p.tb.Fatalf("send %s to plinth %s: %v", s, p.command, err)
	}
}

// Kill ends the process as a power loss would: SIGKILL.
func (p *Process) Kill() {
	p.tb.Helper()
	p.end(syscall.SIGKILL, 10*time.Second)
}

// Stop ends the process gently, and the test when it is not gone after 30 s.
func (p *Process) Stop() {
	p.tb.Helper()
	p.end(syscall.SIGTERM, 30*time.Second)
}

// Restart starts the process again on the same data, after stopping it gently if it still runs.
func (p *Process) Restart() {
	p.tb.Helper()
	if p.running() {
		p.Stop()
	}
	p.start()
}

func (p *Process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (p *Process) end(signal syscall.Signal, within time.Duration) {
	p.tb.Helper()
	if !p.running() {
		return
	}
	_ = p.process.Process.Signal(signal) // fails only when it has just ended
	select {
	case <-p.exited:
	case <-time.After(within):
		p.tb.Fatalf("plinth %s is still there %s after %s\n%s", p.command, within, signal, p.Log())
	}
}

// Log is what the process printed, restarts included.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// cleanUp removes the process and everything of it, and tells what of it could not be removed.
func (p *Process) cleanUp() {
	if p.tb.Failed() {
		p.tb.Logf("plinth %s %s said:\n%s", p.command, p.NodeName, p.Log())
	}
	if p.process != nil && p.process.Process != nil && p.exited != nil {
		_ = p.process.Process.Kill() // fails only when it has ended
		<-p.exited
	}
	if err := leftover.Release(p.Dir); err != nil {
		p.tb.Errorf("clean up %s: %v", p.Dir, err)
		return // what is still mounted below it must not be removed
	}
	if err := os.RemoveAll(p.Dir); err != nil {
		p.tb.Errorf("clean up: %v", err)
	}
}

// Result of a command.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// CLI runs plinth with the arguments, the process's API and its CSI socket.
func (p *Process) CLI(args ...string) Result {
	p.tb.Helper()
	args = slices.Concat(args, []string{"--kubeconfig", p.Kubeconfig, "--csi-endpoint", "unix://" + p.Socket})
	cmd := exec.Command(p.Binary, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.tb.Fatalf("run plinth: %v", err)
	}
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
}

// MustCLI is CLI for a command that must succeed; it returns what the command printed.
func (p *Process) MustCLI(args ...string) string {
	p.tb.Helper()
	r := p.CLI(args...)
	if r.Code != 0 {
		p.tb.Fatalf("plinth %s: exit code %d\n%s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout
}
