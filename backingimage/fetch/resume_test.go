package fetch_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
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

// resumable are files whose download can be cut anywhere, by format, and their content.
func resumable(tb testing.TB) (content []byte, files map[string][]byte) {
	content = image(1, 24<<20)
	qcow2 := mustQCOW2(tb, content)
	return content, map[string][]byte{
		"raw": content, "qcow2": qcow2, "raw+gz": mustPack(tb, "gz", content), "raw+bz2": mustPack(tb, "bz2", content), "qcow2+zst": mustPack(tb, "zst", qcow2),
		"vmdk": mustConvert(tb, content, "-O", "vmdk"), "vdi+xz": mustPack(tb, "xz", mustConvert(tb, content, "-O", "vdi")),
	}
}

func TestAKilledFetchGoesOnFromItsCheckpoint(t *testing.T) {
	content, files := resumable(t)
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &server{content: file, tag: "v1"}
			url := mustServe(t, s)
			dir := filepath.Join(t.TempDir(), "staging")
			size := len(file)
			offset := mustBeKilled(t, s, url, dir, size*9/10)
			result, err := fetch.Run(context.Background(), childJob(dir, mustSource(t, url)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := int64(size) - offset; s.served.Load() != want {
				t.Errorf("%d bytes were served to go on from %d of %d, want %d", s.served.Load(), offset, size, want)
			}
			if result.Checksum != sha512Hex(file) || result.Format != name {
				t.Errorf("the result is %+v", result)
			}
			mustEqual(t, dir, content, result)
		})
	}
}

// TestAKilledConversionIsMadeAgain: its qemu-img dies with the fetch, and nothing before the checkpoint is fetched again.
func TestAKilledConversionIsMadeAgain(t *testing.T) {
	content := image(1, 40<<20)
	for name, file := range map[string][]byte{"vmdk": mustConvert(t, content, "-O", "vmdk"), "vhdx+gz": mustPack(t, "gz", mustConvert(t, content, "-O", "vhdx"))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &server{content: file, tag: "v1"}
			url := mustServe(t, s)
			dir := filepath.Join(t.TempDir(), "staging")
			c := mustStart(t, url, dir)
			for start := time.Now(); ; time.Sleep(time.Millisecond) {
				if _, err := os.Stat(filepath.Join(dir, disk.ImageFile)); err == nil {
					break
				}
				if time.Since(start) > time.Minute {
					t.Fatal("no conversion in a minute")
				}
			}
			c.kill()
			s.heal()
			mustEnd(t, dir)
			offset := saved(dir)
			result, err := fetch.Run(context.Background(), childJob(dir, mustSource(t, url)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if most := int64(len(file)) - offset; s.served.Load() > most || offset == 0 {
				t.Errorf("%d bytes were served to go on from %d of %d", s.served.Load(), offset, len(file))
			}
			mustEqual(t, dir, content, result)
		})
	}
}

// mustEnd waits until no process names the directory in its arguments.
func mustEnd(tb testing.TB, dir string) {
	tb.Helper()
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		list, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			tb.Fatal(err)
		}
		left := ""
		for _, path := range list {
			if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), dir) {
				left = strings.ReplaceAll(string(text), "\x00", " ")
			}
		}
		if left == "" {
			return
		}
		if time.Since(start) > 20*time.Second {
			tb.Fatalf("still runs: %s", left)
		}
	}
}

// damage is what can be found in a directory after a power loss, or worse.
var damage = []struct {
	name    string
	do      func(dir string) error
	resumes bool
}{
	{"garbage behind the checkpoint", func(dir string) error {
		return overwrite(filepath.Join(dir, disk.ImageFile), saved(dir), make1s(1<<20))
	}, true},
	{"a stranger's file", func(dir string) error { return os.WriteFile(filepath.Join(dir, "x"), nil, 0o600) }, true},
	{"no content", func(dir string) error { return os.Remove(filepath.Join(dir, disk.ImageFile)) }, false},
	{"short content", func(dir string) error { return os.Truncate(filepath.Join(dir, disk.ImageFile), 1<<20) }, false},
	{"no digests", func(dir string) error { return os.Remove(filepath.Join(dir, "digests")) }, false},
	{"short digests", func(dir string) error { return os.Truncate(filepath.Join(dir, "digests"), 40) }, false},
	{"half a checkpoint", func(dir string) error { return os.Truncate(filepath.Join(dir, "checkpoint"), 100) }, false},
	{"a checkpoint of another source", func(dir string) error { return replace(dir, `"identity":"`, `"identity":"0`) }, false},
	{"a checkpoint of another version", func(dir string) error { return replace(dir, `"version":1`, `"version":2`) }, false},
	{"a checkpoint with another hash", func(dir string) error { return replace(dir, `"sha512":"`, `"sha512":"AAAA`) }, false},
}

func make1s(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = 1
	}
	return p
}

func overwrite(path string, at int64, p []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(p, at)
	return err
}

func replace(dir, from, to string) error {
	path := filepath.Join(dir, "checkpoint")
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !strings.Contains(string(text), from) {
		return errors.New("the checkpoint has no " + from)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o600)
}

func TestNothingIsTrustedThatACheckpointDoesNotVouchFor(t *testing.T) {
	content := image(1, 12<<20)
	clear(content[8<<20:]) // garbage would show where nothing is written
	for _, c := range damage {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &server{content: content, tag: "v1"}
			j := interrupted(t, s, 11<<20)
			if err := c.do(j.Dir); err != nil {
				t.Fatal(err)
			}
			result, err := fetch.Run(context.Background(), j, nil)
			if err != nil {
				t.Fatal(err)
			}
			mustEqual(t, j.Dir, content, result)
			if resumed := s.served.Load() < int64(len(content)); resumed != c.resumes {
				t.Errorf("resumed is %t: %d bytes were served", resumed, s.served.Load())
			}
		})
	}
}

// interrupted returns a job that was cut for good after so many bytes, and has a checkpoint; the server is well again.
func interrupted(tb testing.TB, s *server, after int) fetch.Job {
	tb.Helper()
	s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		if s.requests.Load() > 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		s.serve(&cutting{w, after}, r)
		return true
	}
	j := job(tb, mustServe(tb, s))
	j.Patience = 500 * time.Millisecond
	if _, err := fetch.Run(context.Background(), j, nil); !backingimage.Is(err, backingimage.NotReady) {
		tb.Fatalf("a cut fetch ended with %v", err)
	}
	if saved(j.Dir) == 0 {
		tb.Fatal("a cut fetch left no checkpoint")
	}
	s.heal()
	j.Patience = 20 * time.Second
	return j
}

func TestAFileThatChangedBetweenAttemptsIsFetchedAnew(t *testing.T) {
	s := &server{content: image(1, 12<<20), tag: "v1"}
	j := interrupted(t, s, 11<<20)
	s.content, s.tag = image(2, 10<<20), "v2"
	result, err := fetch.Run(context.Background(), j, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustEqual(t, j.Dir, s.content, result)
}

func TestAChecksumGivenLaterStartsOverOnlyIfItsHashIsMissing(t *testing.T) {
	for checksum, resumes := range map[string]bool{"sha512": true, "sha256": false} {
		s := &server{content: image(1, 12<<20), tag: "v1"}
		j := interrupted(t, s, 11<<20)
		j.Checksum = map[string]string{"sha512": sha512Hex(s.content), "sha256": sha256Hex(s.content)}[checksum]
		if _, err := fetch.Run(context.Background(), j, nil); err != nil {
			t.Fatal(err)
		}
		if got := s.served.Load() < int64(len(s.content)); got != resumes {
			t.Errorf("%s: resumed is %t", checksum, got)
		}
	}
}

func TestCancelReturnsPromptlyAndLeavesWhatIsThere(t *testing.T) {
	s := &server{content: image(1, 12<<20), tag: "v1"}
	s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		s.serve(&holding{w, 11 << 20, r.Context().Done()}, r)
		return true
	}
	j := job(t, mustServe(t, s))
	ctx, cancel := context.WithCancel(context.Background())
	_, err := fetch.Run(ctx, j, func(p fetch.Progress) {
		if p.Bytes > 8<<20 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || backingimage.Terminal(err) {
		t.Fatalf("got %v", err)
	}
	s.heal()
	result, err := fetch.Run(context.Background(), j, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustEqual(t, j.Dir, s.content, result)
}

func TestKilledAtAnyInstructionItIsCompletedByTheNext(t *testing.T) {
	content, files := resumable(t)
	delete(files, "raw+bz2") // slow, and like gz
	type attempt struct {
		file  []byte
		query string
	}
	attempts := map[string]attempt{"raw in pieces": {files["raw"], piecesQuery}, "qcow2 in pieces": {files["qcow2"], piecesQuery}}
	for name, file := range files {
		attempts[name] = attempt{file, ""}
	}
	for name, c := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &server{content: c.file, tag: "v1"}
			url := mustServe(t, s) + c.query
			dir := filepath.Join(t.TempDir(), "staging")
			for range 6 {
				c := mustStart(t, url, dir)
				time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
				c.kill()
			}
			last, err := newSource(url)
			if err != nil {
				t.Fatal(err)
			}
			result, err := fetch.Run(context.Background(), childJob(dir, last), nil)
			if err != nil {
				t.Fatal(err)
			}
			mustEqual(t, dir, content, result)
		})
	}
}
