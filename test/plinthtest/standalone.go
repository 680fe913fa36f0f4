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

// Options of a Standalone. The zero value is a good one.
type Options struct {
	NodeName string        // default "test-node"
	Pool     string        // size of the pool, default "8Gi" (sparse: it costs what is written)
	Args     []string      // further arguments of `plinth standalone`; a repeated flag's last value counts
	Ready    time.Duration // how long it may take to become ready; default 60 s
}

// Standalone is a running `plinth standalone`.
type Standalone struct {
	Binary     string
	Dir        string // a directory for the test's own files; mounts below it are cleaned up
	DataDir    string
	Socket     string // path of the CSI socket
	Kubeconfig string
	HTTP       string // host:port of /healthz, /readyz and /metrics
	NodeName   string

	tb      testing.TB
	o       Options
	log     string
	process *exec.Cmd
	exited  chan struct{}
}

// Start starts `plinth standalone` and returns when it is ready. The test ends when that does not happen; without root it
// is skipped.
func Start(tb testing.TB, o Options) *Standalone {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("left out without root: plinth standalone mounts its pool and attaches loop devices")
	}
	s := &Standalone{Binary: MustBinary(tb), tb: tb, o: o}
	if s.o.Ready == 0 {
		s.o.Ready = 60 * time.Second
	}
	s.NodeName = o.NodeName
	if s.NodeName == "" {
		s.NodeName = "test-node"
	}
	s.Dir = mustTempDir(tb)
	s.DataDir = filepath.Join(s.Dir, "data")
	s.Socket = filepath.Join(s.Dir, "csi.sock")
	s.Kubeconfig = filepath.Join(s.DataDir, "kubeconfig")
	s.log = filepath.Join(s.Dir, "plinth.log")
	s.HTTP = mustFreeAddress(tb)
	tb.Cleanup(s.cleanUp)
	s.start()
	return s
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

func mustFreeAddress(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("find a free port: %v", err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *Standalone) args() []string {
	pool := s.o.Pool
	if pool == "" {
		pool = "8Gi"
	}
	args := []string{
		"standalone",
		"--data-dir", s.DataDir,
		"--csi-endpoint", "unix://" + s.Socket,
		"--node-name", s.NodeName,
		"--pool-size", pool,
		"--http-listen", s.HTTP,
		"--allow-source-cidr", "127.0.0.0/8",
	}
	return append(args, s.o.Args...)
}

// start runs the process and waits for its ready line.
func (s *Standalone) start() {
	s.tb.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer log.Close()
	before, err := log.Seek(0, 2)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.process = exec.Command(s.Binary, s.args()...)
	s.process.Stdout, s.process.Stderr = log, log
	s.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		s.tb.Fatalf("start %s: %v", s.Binary, err)
	}
	s.exited = make(chan struct{})
	go func(p *exec.Cmd, exited chan struct{}) {
		_ = p.Wait() // its state says how it ended
		close(exited)
	}(s.process, s.exited)
	if err := s.waitReady(before); err != nil {
		s.tb.Fatalf("plinth standalone did not become ready: %v\n%s", err, s.Log())
	}
}

// waitReady returns when the log, from an offset on, has the ready line.
func (s *Standalone) waitReady(from int64) error {
	deadline := time.Now().Add(s.o.Ready)
	for time.Now().Before(deadline) {
		log, err := os.ReadFile(s.log)
		if err != nil {
			return err
		}
		if readyLine(log[from:]) {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("it ended: %s", s.process.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New("no ready line in " + s.o.Ready.String())
}

func readyLine(log []byte) bool {
	for line := range bytes.Lines(log) {
		if bytes.HasPrefix(line, []byte("plinth is ready")) && bytes.HasSuffix(line, []byte("\n")) {
			return true
		}
	}
	return false
}

// PID of the process, for looking at its memory.
func (s *Standalone) PID() int { return s.process.Process.Pid }

// Kill ends the process as a power loss would: SIGKILL.
func (s *Standalone) Kill() {
	s.tb.Helper()
	s.end(syscall.SIGKILL, 10*time.Second)
}

// Stop ends the process gently, and the test when it is not gone after 30 s.
func (s *Standalone) Stop() {
	s.tb.Helper()
	s.end(syscall.SIGTERM, 30*time.Second)
}

// Restart starts the process again on the same data, after stopping it gently if it still runs.
func (s *Standalone) Restart() {
	s.tb.Helper()
	if s.running() {
		s.Stop()
	}
	s.start()
}

func (s *Standalone) running() bool {
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

func (s *Standalone) end(signal syscall.Signal, within time.Duration) {
	s.tb.Helper()
	if !s.running() {
		return
	}
	_ = s.process.Process.Signal(signal) // fails only when it has just ended
	select {
	case <-s.exited:
	case <-time.After(within):
		s.tb.Fatalf("plinth standalone is still there %s after %s\n%s", within, signal, s.Log())
	}
}

// Log is what the process printed, restarts included.
func (s *Standalone) Log() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// cleanUp removes the process and everything of it, and tells what of it could not be removed.
func (s *Standalone) cleanUp() {
	if s.tb.Failed() {
		s.tb.Logf("plinth standalone said:\n%s", s.Log())
	}
	if s.process != nil && s.process.Process != nil && s.exited != nil {
		_ = s.process.Process.Kill() // fails only when it has ended
		<-s.exited
	}
	if err := leftover.Release(s.Dir); err != nil {
		s.tb.Errorf("clean up %s: %v", s.Dir, err)
		return // what is still mounted below it must not be removed
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		s.tb.Errorf("clean up: %v", err)
	}
}

// Result of a command.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// CLI runs plinth with the arguments, this Standalone's API and its CSI socket.
func (s *Standalone) CLI(args ...string) Result {
	s.tb.Helper()
	args = slices.Concat(args, []string{"--kubeconfig", s.Kubeconfig, "--csi-endpoint", "unix://" + s.Socket})
	cmd := exec.Command(s.Binary, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.tb.Fatalf("run plinth: %v", err)
	}
	return Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
}

// MustCLI is CLI for a command that must succeed; it returns what the command printed.
func (s *Standalone) MustCLI(args ...string) string {
	s.tb.Helper()
	r := s.CLI(args...)
	if r.Code != 0 {
		s.tb.Fatalf("plinth %s: exit code %d\n%s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return r.Stdout
}
