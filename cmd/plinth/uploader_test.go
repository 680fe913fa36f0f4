package main_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// uploader is a user with a file.
type uploader struct {
	*user
	raw string
}

func writeRandom(t *testing.T, path string, size int, seed byte) {
	t.Helper()
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content[:size*3/4])
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (u *uploader) sameContent(t *testing.T, image, path string, args ...string) {
	t.Helper()
	out := u.path(image + ".back")
	u.MustCLI(append([]string{"image", "download", image, "-o", out}, args...)...)
	got, err := os.ReadFile(out)
	want, werr := os.ReadFile(path)
	if err != nil || werr != nil || !bytes.Equal(got, want) {
		t.Errorf("image %s is not %s (%v, %v)", image, path, err, werr)
	}
}

// command is plinth, not started yet.
func (u *uploader) command(args ...string) *exec.Cmd {
	cmd := exec.Command(u.Binary, append(args, "--kubeconfig", u.Kubeconfig)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// begin starts an upload that takes seconds.
func (u *uploader) begin(t *testing.T, name, file string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := u.command("image", "upload", file, "--name", name, "--limit-rate", "8Mi")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, &out
}

func (u *uploader) uid(t *testing.T, name string) string {
	t.Helper()
	var object struct{ Metadata struct{ UID string } }
	if r := u.CLI("image", "show", name, "-o", "json"); r.Code != 0 || json.Unmarshal([]byte(r.Stdout), &object) != nil {
		return ""
	}
	return object.Metadata.UID
}

func (u *uploader) staging() string { return filepath.Join(u.DataDir, "disk", "pool", "staging") }

// untilArrived waits until an upload has so many bytes.
func (u *uploader) untilArrived(t *testing.T, name string, size int64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if uid := u.uid(t, name); uid != "" {
			if info, err := os.Stat(filepath.Join(u.staging(), "upload-"+uid, uid)); err == nil && info.Size() >= size {
				return
			}
		}
	}
	t.Fatalf("of image %s nothing arrives\n%s", name, u.MustCLI("image", "show", name))
}

// noUploads checks that nothing is left of any upload.
func (u *uploader) noUploads(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(u.staging())
	if err != nil || len(entries) > 0 {
		t.Errorf("staging has %v, %v", entries, err)
	}
}

func (u *uploader) received(t *testing.T) int64 {
	t.Helper()
	return u.metric(t, "plinth_upload_bytes_total")
}

// metric is a counter's value.
func (u *uploader) metric(t *testing.T, name string) int64 {
	t.Helper()
	resp, err := http.Get("http://" + u.HTTP + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int64(n)
		}
	}
	return 0
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Errorf("qemu-img %v: %v\n%s", args, err, out)
	}
}
