package fetch_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
)

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
