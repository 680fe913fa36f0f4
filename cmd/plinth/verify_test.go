package main_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/test/plinthtest"
)

// TestVerify lets bytes on a disk rot under a running server, and under one that is killed.
func TestVerify(t *testing.T) {
	s := plinthtest.Start(t, plinthtest.Options{})
	v := &verifier{uploader: &uploader{user: &user{Standalone: s}}, web: newFlaky(t, 24<<20)}
	v.MustCLI("image", "create", "golden", "--url", v.web.URL, "--wait")
	v.dir = filepath.Join(v.DataDir, "disk", "pool", "images", v.uid(t, "golden"))
	for _, step := range []struct {
		name string
		test func(*testing.T, *verifier)
	}{
		{"good copies are told good", verifyGood},
		{"one flipped byte is found and repaired", verifyFlipped},
		{"a copy that cannot be repaired is bad, and is not cloned until it is", verifyBad},
		{"the server is killed in the middle of a repair", killedInRepair},
		{"the server is killed after damage was found", killedAfterDamage},
		{"a copy removed under the running server comes back", removedCopy},
		{"a name, a disk, and nobody's copies", verifyRefusals},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, v) }) {
			return
		}
	}
}

// flaky serves a file, fails, or halts, when told.
type flaky struct {
	*httptest.Server
	content []byte
	fail    atomic.Bool
	asked   atomic.Int64
	halt    atomic.Int64                  // requests from this one on wait; 0: none does
	release atomic.Pointer[chan struct{}] // closed when they may go on
}

func newFlaky(t *testing.T, size int) *flaky {
	f := &flaky{content: make([]byte, size)}
	_, _ = rand.NewChaCha8([32]byte{7}).Read(f.content[:size*3/4])
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	t.Cleanup(f.CloseClientConnections)
	return f
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := f.asked.Add(1)
	if f.fail.Load() {
		http.Error(w, "later", http.StatusServiceUnavailable)
		return
	}
	if halt := f.halt.Load(); halt > 0 && n >= halt {
		select {
		case <-*f.release.Load():
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("ETag", `"v1"`)
	http.ServeContent(w, r, "disk", time.Time{}, bytes.NewReader(f.content))
}

// haltAfter lets so many more requests pass, and returns what lets the others go on.
func (f *flaky) haltAfter(n int64) (release func()) {
	held := make(chan struct{})
	f.release.Store(&held)
	f.halt.Store(f.asked.Load() + n + 1)
	return func() { f.halt.Store(0); close(held) }
}

// verifier is a user whose disk rots.
type verifier struct {
	*uploader
	web *flaky
	dir string // of the golden image's copy
}

// unseal lets a file be written to, immutable or not.
func unseal(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
		f.Close()
	}
	if err == nil {
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// flip flips a byte of the copy at each offset.
func (v *verifier) flip(t *testing.T, offsets ...int64) {
	t.Helper()
	f := unseal(t, filepath.Join(v.dir, "image.raw"))
	defer f.Close()
	for _, at := range offsets {
		if _, err := f.WriteAt([]byte{v.web.content[at] ^ 1}, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// copyState is the state of the golden image's copy.
func (v *verifier) copyState(t *testing.T) string {
	t.Helper()
	var image struct {
		Status struct {
			DiskFileStatusMap map[string]struct{ State string }
		}
	}
	if err := json.Unmarshal([]byte(v.MustCLI("image", "show", "golden", "-o", "json")), &image); err != nil {
		t.Fatal(err)
	}
	for _, c := range image.Status.DiskFileStatusMap {
		return c.State
	}
	return ""
}

// until waits for something to come about.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute it is not so: %s", what)
		}
	}
}

func (v *verifier) whole(t *testing.T) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(v.dir, "image.raw"))
	if err != nil || !bytes.Equal(got, v.web.content) {
		t.Errorf("the copy differs (%v)", err)
	}
	if v.marked() {
		t.Error("the copy is marked as damaged")
	}
}

func (v *verifier) marked() bool {
	_, err := os.Stat(filepath.Join(v.dir, "damaged"))
	return err == nil
}

func verifyGood(t *testing.T, v *verifier) {
	if out := v.MustCLI("image", "verify", "golden"); !strings.Contains(out, "every chunk agrees") {
		t.Errorf("it says:\n%s", out)
	}
	if out := v.MustCLI("image", "show", "golden"); !strings.Contains(out, "LAST VERIFIED") || !strings.Contains(out, "s ago, good") {
		t.Errorf("image show says:\n%s", out)
	}
	if n := v.metric(t, "plinth_scrubbed_bytes_total"); n < 18<<20 || n > 24<<20 {
		t.Errorf("%d bytes were read", n)
	}
}

func verifyFlipped(t *testing.T, v *verifier) {
	v.flip(t, 5)
	if out := v.MustCLI("image", "verify", "golden"); !strings.Contains(out, "repaired chunk 0 from the image's source") {
		t.Errorf("it says:\n%s", out)
	}
	v.whole(t)
	if v.metric(t, "plinth_bad_chunks_total") != 1 || v.metric(t, `plinth_repaired_chunks_total{from="source"}`) != 1 {
		t.Error("the metrics do not tell it")
	}
}

func verifyBad(t *testing.T, v *verifier) {
	v.web.fail.Store(true)
	v.flip(t, 3<<20)
	v.refused(t, 8, []string{"1 of 1 copies are bad", "bytes 2097152-4194303", "503"}, "image", "verify", "golden")
	v.MustCLI("volume", "create", "waits", "--image", "golden")
	time.Sleep(time.Second)
	if made := v.clones(t); len(made) > 0 {
		t.Errorf("a damaged copy was cloned: %q", made)
	}
	v.web.fail.Store(false)
	v.MustCLI("image", "verify", "golden")
	v.whole(t)
	v.cloned(t)
	v.MustCLI("volume", "rm", "waits")
}

func killedInRepair(t *testing.T, v *verifier) {
	v.flip(t, 1, 5<<20, 9<<20)
	release := v.web.haltAfter(1)
	before := v.web.asked.Load()
	v.MustCLI("image", "verify", "golden", "--wait=false")
	until(t, "one chunk is mended and the next is on its way", func() bool { return v.web.asked.Load() >= before+2 })
	v.Kill()
	if !v.marked() {
		t.Error("the mark is gone")
	}
	v.Restart()
	until(t, "the repair has begun again", func() bool { return v.copyState(t) != "ready" })
	if text, err := os.ReadFile(filepath.Join(v.dir, "damaged")); err != nil || strings.TrimSpace(string(text)) != `{"chunks":[2,4]}` {
		t.Errorf("the mark says %q, %v", text, err)
	}
	release()
	until(t, "it is ready", func() bool { return v.copyState(t) == "ready" })
	v.MustCLI("image", "verify", "golden")
	v.whole(t)
}

func killedAfterDamage(t *testing.T, v *verifier) {
	v.web.fail.Store(true)
	v.flip(t, 1)
	v.refused(t, 8, nil, "image", "verify", "golden")
	v.Kill()
	v.Restart()
	if state := v.copyState(t); state == "ready" || !v.marked() {
		t.Errorf("after a restart the damaged copy is %s", state)
	}
	v.web.fail.Store(false)
	v.MustCLI("image", "verify", "golden")
	v.whole(t)
}

func removedCopy(t *testing.T, v *verifier) {
	for _, name := range []string{"image.raw", "manifest"} {
		path := filepath.Join(v.dir, name)
		unseal(t, path).Close()
	}
	if err := os.RemoveAll(v.dir); err != nil {
		t.Fatal(err)
	}
	v.MustCLI("volume", "create", "early", "--image", "golden")
	until(t, "it is there again", func() bool { _, err := os.Stat(v.dir); return err == nil && v.copyState(t) == "ready" })
	v.MustCLI("image", "verify", "golden")
	v.whole(t)
	v.cloned(t)
	v.MustCLI("volume", "rm", "early")
}

// clones are the contents of all volumes.
func (v *verifier) clones(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(v.DataDir, "disk", "pool", "volumes", "*", "volume.raw"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// cloned waits for the one volume to be a clone of the golden image.
func (v *verifier) cloned(t *testing.T) {
	t.Helper()
	until(t, "the volume is cloned", func() bool { return len(v.clones(t)) == 1 })
	if got, err := os.ReadFile(v.clones(t)[0]); err != nil || !bytes.Equal(got, v.web.content) {
		t.Errorf("the volume differs (%v)", err)
	}
}

func verifyRefusals(t *testing.T, v *verifier) {
	v.refused(t, 3, []string{"nothing"}, "image", "verify", "nothing")
	v.refused(t, 3, []string{"--disk", "no copy on disk"}, "image", "verify", "golden", "--disk", "375d141f-c688-4773-97c0-7303f1b66a75")
	v.refused(t, 2, nil, "image", "verify")
	disk := strings.TrimSpace(v.MustCLI("disk", "ls", "-o", "name"))
	v.MustCLI("image", "verify", "golden", "--disk", disk[:8])
}
