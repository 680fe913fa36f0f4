package main_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"plinth.dev/plinth/test/plinthtest"
)

// TestNouns uses the binary as a person does: one server, one command after another.
func TestNouns(t *testing.T) {
	s := plinthtest.Start(t, plinthtest.Options{})
	www := t.TempDir()
	image := plinthtest.MustImage(t, www, "image.qcow2", plinthtest.Image{Files: map[string]string{"hello": "from the image\n"}})
	u := &user{Standalone: s, staging: filepath.Join(s.Dir, "staging"), url: plinthtest.Serve(t, www), image: image}
	for _, step := range []struct {
		name string
		test func(*testing.T, *user)
	}{
		{"nothing is there at first", nothingYet},
		{"an image is fetched and shown", imageIsFetched},
		{"creating an image again is no change, and a different one is refused", imageAgain},
		{"how many copies are kept, and where, can be changed", imageSet},
		{"an image is made of a volume, and another of that image", imageFromWhatIsHere},
		{"an image that failed for good ends the wait with the failure's code", imageFails},
		{"the doctor finds what is wrong, and nothing when it is mended", doctorSays},
		{"a volume has the image's files, and its own changes", volumeFromImage},
		{"what is mounted outlives the server, and is unmounted by the next", serverKilled},
		{"an image that a volume waits for is not deleted", imageIsNeeded},
		{"a block volume is a device of the size asked for", blockVolume},
		{"a copy that its image needs is not cleaned up", cleanup},
		{"what is used is not deleted, and what is gone is not found", removal},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, u) }) {
			return
		}
	}
}

// user is somebody with a shell.
type user struct {
	*plinthtest.Standalone
	staging string
	url     string
	image   plinthtest.ImageFile
}

func (u *user) mount(t *testing.T, volume, path string, args ...string) {
	t.Helper()
	u.MustCLI(append([]string{"volume", "mount", volume, path, "--staging-dir", u.staging}, args...)...)
}

func (u *user) path(name string) string { return filepath.Join(u.Dir, name) }

// refused runs a command that must fail with the code and say all of the words.
func (u *user) refused(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	r := u.CLI(args...)
	if r.Code != code {
		t.Errorf("plinth %s: exit code %d, not %d\n%s", strings.Join(args, " "), r.Code, code, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("plinth %s does not say %q:\n%s", strings.Join(args, " "), w, r.Stderr)
		}
	}
}

func nothingYet(t *testing.T, u *user) {
	for _, noun := range []string{"image", "volume"} {
		if r := u.CLI(noun, "ls"); r.Code != 0 || r.Stdout != "" || !strings.HasPrefix(r.Stderr, "No "+noun+"s. ") {
			t.Errorf("%s ls: %+v", noun, r)
		}
	}
	if out := u.MustCLI("node", "ls", "-o", "name"); out != "test-node\n" {
		t.Errorf("nodes: %q", out)
	}
	disk := strings.TrimSpace(u.MustCLI("disk", "ls", "-o", "name"))
	if out := u.MustCLI("disk", "show", disk); !strings.Contains(out, u.DataDir) {
		t.Errorf("disk %s: %s", disk, out)
	}
	u.refused(t, 3, []string{`there is no image "nope"`}, "image", "wait", "nope")
}

func imageIsFetched(t *testing.T, u *user) {
	u.MustCLI("image", "create", "base", "--url", u.url+"/image.qcow2", "--checksum", u.image.SHA256, "--wait")
	out := u.MustCLI("image", "show", "base")
	for _, want := range []string{"State:", "ready", u.url, "64 MiB (67108864 bytes)", "Copies:", "FROM", "test-node"} {
		if !strings.Contains(out, want) {
			t.Errorf("image show lacks %q:\n%s", want, out)
		}
	}
	var object struct {
		Kind   string
		Status struct{ VirtualSize int64 }
	}
	if err := json.Unmarshal([]byte(u.MustCLI("image", "show", "base", "-o", "json")), &object); err != nil || object.Kind != "BackingImage" || object.Status.VirtualSize != 64<<20 {
		t.Errorf("as JSON: %+v, %v", object, err)
	}
}

func imageAgain(t *testing.T, u *user) {
	same := []string{"image", "create", "base", "--url", u.url + "/image.qcow2", "--checksum", "SHA256:" + strings.ToUpper(u.image.SHA256)}
	if out := u.MustCLI(same...); !strings.Contains(out, "is the same") {
		t.Errorf("again: %q", out)
	}
	u.refused(t, 4, []string{"url", "checksum"}, "image", "create", "base", "--url", u.url+"/other.qcow2")
}

func imageSet(t *testing.T, u *user) {
	same := []string{"image", "create", "base", "--url", u.url + "/image.qcow2", "--checksum", u.image.SHA256}
	u.refused(t, 4, []string{"minimum number of copies is 1, not 3", "plinth image set base"}, append(same, "--min-copies", "3")...)
	u.refused(t, 2, []string{"--min-copies"}, "image", "set", "base")
	u.refused(t, 2, []string{"--min-copies", "1 to 100"}, "image", "set", "base", "--min-copies", "0")
	u.refused(t, 3, nil, "image", "set", "nope", "--prefetch")
	if out := u.MustCLI("image", "set", "base", "--min-copies", "3", "--disk-selector", "fast"); !strings.Contains(out, "at least 3 copies, on disks with the tags [fast]") {
		t.Errorf("it says %q", out)
	}
	if out := u.MustCLI(append(same, "--min-copies", "3", "--disk-selector", "fast")...); !strings.Contains(out, "is the same") {
		t.Errorf("again: %q", out)
	}
	u.MustCLI("image", "set", "base", "--min-copies", "1", "--disk-selector", "")
	u.MustCLI(same...)
}

func doctorSays(t *testing.T, u *user) {
	if out := u.MustCLI("doctor"); strings.Contains(out, "error") || strings.Contains(out, "warning") {
		t.Errorf("of what is well the doctor says\n%s", out)
	}
	u.refused(t, 3, nil, "image", "create", "ill", "--url", u.url+"/ill.qcow2", "--wait")
	u.refused(t, 5, []string{"1 errors, 0 warnings"}, "doctor")
	var d struct {
		Healthy  bool
		Findings []struct{ Severity, Kind, Name, Problem, Message, Remedy string }
	}
	r := u.CLI("doctor", "-o", "json")
	if err := json.Unmarshal([]byte(r.Stdout), &d); err != nil || d.Healthy || r.Code != 5 {
		t.Fatalf("as JSON: %+v, %v", r, err)
	}
	if f := d.Findings[0]; f.Severity != "error" || f.Kind != "BackingImage" || f.Name != "ill" || f.Problem != "Failed" || !strings.Contains(f.Message, "404") || f.Remedy == "" {
		t.Errorf("found %+v", f)
	}
	u.MustCLI("image", "rm", "ill")
	u.MustCLI("doctor")
}

func imageFails(t *testing.T, u *user) {
	u.refused(t, 3, []string{"404"}, "image", "create", "gone", "--url", u.url+"/gone.qcow2", "--wait")
	u.refused(t, 8, []string{u.image.SHA256}, "image", "create", "wrong", "--url", u.url+"/image.qcow2", "--checksum", strings.Repeat("0", 64), "--wait")
	u.MustCLI("image", "rm", "gone", "wrong")
	u.refused(t, 3, nil, "image", "show", "gone")
}

// imageFromWhatIsHere makes images of a volume and of an image.
func imageFromWhatIsHere(t *testing.T, u *user) {
	u.MustCLI("volume", "create", "build", "--image", "base")
	u.mount(t, "build", u.path("build"))
	if err := os.WriteFile(filepath.Join(u.path("build"), "made"), []byte("here"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.MustCLI("image", "create", "exported", "--from-volume", "build", "--export-type", "qcow2", "--wait")
	u.MustCLI("image", "create", "cloned", "--clone-of", "exported", "--wait")
	for _, again := range [][]string{{"exported", "--from-volume", "build", "--export-type", "qcow2"}, {"cloned", "--clone-of", "exported"}} {
		if out := u.MustCLI(append([]string{"image", "create"}, again...)...); !strings.Contains(out, "is the same") {
			t.Errorf("again: %q", out)
		}
	}
	u.MustCLI("volume", "create", "release", "--image", "cloned")
	u.mount(t, "release", u.path("release"))
	if b, err := os.ReadFile(filepath.Join(u.path("release"), "made")); string(b) != "here" {
		t.Errorf("the volume of the clone of the export has %q, %v", b, err)
	}
	u.refused(t, 4, []string{"export-type is qcow2, not none"}, "image", "create", "exported", "--from-volume", "build")
	u.refused(t, 4, []string{"source type", "url is none, not http"}, "image", "create", "cloned", "--url", u.url+"/image.qcow2")
	u.refused(t, 3, []string{`"nowhere"`}, "image", "create", "none", "--from-volume", "nowhere", "--wait")
	u.refused(t, 3, []string{"there is no image nowhere"}, "image", "create", "none-either", "--clone-of", "nowhere", "--wait")
	for _, v := range []string{"build", "release"} {
		u.MustCLI("volume", "unmount", u.path(v), "--staging-dir", u.staging)
		u.MustCLI("volume", "rm", v)
	}
	u.MustCLI("image", "rm", "exported", "cloned", "none", "none-either")
}

func volumeFromImage(t *testing.T, u *user) {
	for _, v := range []string{"one", "two"} {
		u.MustCLI("volume", "create", v, "--image", "base", "--size", "100Mi")
		u.mount(t, v, u.path(v))
		if b, err := os.ReadFile(filepath.Join(u.path(v), "hello")); string(b) != "from the image\n" {
			t.Fatalf("volume %s has %q, %v", v, b, err)
		}
		if err := os.WriteFile(filepath.Join(u.path(v), "hello"), []byte(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u.mount(t, "one", u.path("one")) // again
	u.mount(t, "one", u.path("read-only"), "--read-only")
	if err := os.WriteFile(filepath.Join(u.path("read-only"), "x"), nil, 0o644); err == nil {
		t.Error("a read-only mount was written to")
	}
	u.refused(t, 4, []string{"one", "unmount it first"}, "volume", "mount", "two", u.path("one"), "--staging-dir", u.staging)
	u.refused(t, 2, []string{"64 MiB"}, "volume", "create", "small", "--image", "base", "--size", "1Mi")
	u.refused(t, 4, []string{"100 MiB"}, "volume", "create", "one", "--image", "base", "--size", "200Mi")
}

func serverKilled(t *testing.T, u *user) {
	u.Kill()
	if b, err := os.ReadFile(filepath.Join(u.path("one"), "hello")); string(b) != "one" {
		t.Errorf("without a server the volume has %q, %v", b, err)
	}
	u.refused(t, 6, []string{"does not answer", "plinth standalone"}, "image", "ls")
	u.refused(t, 6, []string{"no CSI driver answers"}, "volume", "create", "x", "--size", "1Gi")
	u.Restart()
	if out := u.MustCLI("volume", "unmount", u.path("read-only"), "--staging-dir", u.staging); !strings.Contains(out, "read-only") {
		t.Errorf("unmount: %q", out)
	}
	u.MustCLI("volume", "unmount", "one", "--staging-dir", u.staging)
	u.MustCLI("volume", "unmount", "one", "--staging-dir", u.staging)
	if _, err := os.Stat(filepath.Join(u.path("one"), "hello")); err == nil {
		t.Error("it is still mounted")
	}
}

func imageIsNeeded(t *testing.T, u *user) {
	var once sync.Once
	hold := make(chan struct{})
	release := func() { once.Do(func() { close(hold) }) }
	content, err := os.ReadFile(u.image.Path)
	if err != nil {
		t.Fatal(err)
	}
	// The first bytes are enough to make the volume; the rest comes when the test says so.
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		_, _ = w.Write(content[:len(content)/2])
		w.(http.Flusher).Flush()
		select {
		case <-hold:
		case <-r.Context().Done():
		}
		_, _ = w.Write(content[len(content)/2:])
	}))
	t.Cleanup(slow.Close)
	t.Cleanup(release)
	u.MustCLI("image", "create", "slow", "--url", slow.URL)
	u.MustCLI("volume", "create", "waiting", "--image", "slow")
	u.refused(t, 5, []string{"waiting"}, "image", "rm", "slow")
	u.refused(t, 6, []string{"slow"}, "volume", "mount", "waiting", u.path("waiting"), "--timeout", "1s", "--staging-dir", u.staging)
	release()
	u.mount(t, "waiting", u.path("waiting"))
	u.MustCLI("image", "rm", "slow")
	if _, err := os.Stat(filepath.Join(u.path("waiting"), "hello")); err != nil {
		t.Errorf("the image is gone, and the volume with it: %v", err)
	}
	u.MustCLI("volume", "unmount", "waiting", "--staging-dir", u.staging)
	u.MustCLI("volume", "rm", "waiting")
}

func blockVolume(t *testing.T, u *user) {
	u.MustCLI("volume", "create", "raw", "--block", "--size", "10Mi")
	u.mount(t, "raw", u.path("device"), "--block")
	device, err := os.Open(u.path("device"))
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if end, err := device.Seek(0, 2); end != 10<<20 {
		t.Errorf("the device has %d bytes, %v", end, err)
	}
	device.Close()
	u.MustCLI("volume", "unmount", u.path("device"), "--staging-dir", u.staging)
	if out := u.MustCLI("volume", "expand", "raw", "--size", "20Mi", "--staging-dir", u.staging); !strings.Contains(out, "20 MiB") {
		t.Errorf("expand: %q", out)
	}
}

func cleanup(t *testing.T, u *user) {
	disk := strings.TrimSpace(u.MustCLI("disk", "ls", "-o", "name"))
	path := u.DataDir + "/disk"
	for _, ref := range []string{disk, disk[:8], strings.ToUpper(disk), path, u.NodeName + path} {
		u.refused(t, 5, []string{"needs 1 ready copies", "spec.minNumberOfCopies"}, "image", "cleanup", "base", "--disk", ref)
	}
	u.refused(t, 3, []string{"no copy on disk", disk, path}, "image", "cleanup", "base", "--disk", "other-node"+path)
	u.refused(t, 3, []string{"no copy on disk", disk}, "image", "cleanup", "base", "--disk", "nowhere")
	u.refused(t, 2, []string{"--disk"}, "image", "cleanup", "base")
}

func removal(t *testing.T, u *user) {
	u.refused(t, 5, []string{"unmount"}, "volume", "rm", "two")
	u.MustCLI("volume", "unmount", "two", "--staging-dir", u.staging)
	u.MustCLI("volume", "rm", "one", "two", "raw")
	u.refused(t, 3, []string{`"one"`}, "volume", "rm", "one")
	u.MustCLI("image", "rm", "base")
	if out := u.MustCLI("volume", "ls", "-o", "name") + u.MustCLI("image", "ls", "-o", "name"); out != "" {
		t.Errorf("left: %q", out)
	}
	if left, _ := filepath.Glob(filepath.Join(u.staging, "*")); len(left) > 0 {
		t.Errorf("staging directory: %v", left)
	}
}
