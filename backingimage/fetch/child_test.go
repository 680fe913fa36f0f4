package fetch_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/fetch"
)

// childEnv makes the test binary a process that fetches, and can be killed: "URL DIR".
const childEnv = "PLINTH_TEST_FETCH"

func TestMain(m *testing.M) {
	url, dir, child := strings.Cut(os.Getenv(childEnv), " ")
	if !child {
		os.Exit(m.Run())
	}
	s, err := newSource(url)
	if err == nil {
		fmt.Println("started")
		_, err = fetch.Run(context.Background(), childJob(dir, s), nil)
		fmt.Println(peak())
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// peak is the line of the kernel that says how much memory this process had at most.
func peak() string {
	text, _ := os.ReadFile("/proc/self/status") // an empty line fails who asks
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

// child is a process that fetches.
type child struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

// end waits until it has ended by itself, and returns what it said since it began, line by line.
func (c *child) end(tb testing.TB) []string {
	tb.Helper()
	said, err := io.ReadAll(c.out)
	if err != nil {
		tb.Fatal(err)
	}
	_ = c.cmd.Wait() // it says how it went
	return strings.Split(strings.TrimSpace(string(said)), "\n")
}

// mustStart starts a child and returns when it has begun.
func mustStart(tb testing.TB, url, dir string) *child {
	tb.Helper()
	c := &child{cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childEnv+"="+url+" "+dir)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.kill)
	c.out = bufio.NewReader(out)
	if line, err := c.out.ReadString('\n'); line != "started\n" {
		tb.Fatalf("the child says %q, %v", line, err)
	}
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	_ = c.cmd.Wait()
}

// saved is the offset of the checkpoint in a directory, 0 when there is none.
func saved(dir string) int64 {
	var c struct{ Offset int64 }
	text, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil || json.Unmarshal(text, &c) != nil {
		return 0
	}
	return c.Offset
}

// holding serves content, but no connection gets past hold until it is let go.
type holding struct {
	http.ResponseWriter
	left int
	gone <-chan struct{}
}

func (h *holding) Write(p []byte) (int, error) {
	n, err := h.ResponseWriter.Write(p[:min(len(p), h.left)])
	if h.left -= n; h.left == 0 {
		h.ResponseWriter.(http.Flusher).Flush()
		<-h.gone
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// mustBeKilled runs a child until it has a checkpoint, kills it, and returns where that was. The
// server gives it no more than hold bytes.
func mustBeKilled(tb testing.TB, s *server, url, dir string, hold int) int64 {
	tb.Helper()
	s.behave(func(w http.ResponseWriter, r *http.Request) bool {
		s.serve(&holding{w, hold, r.Context().Done()}, r)
		return true
	})
	c := mustStart(tb, url, dir)
	for start := time.Now(); saved(dir) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			tb.Fatal("no checkpoint in a minute")
		}
	}
	c.kill()
	s.heal()
	return saved(dir)
}
