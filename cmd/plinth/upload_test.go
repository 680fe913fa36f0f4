package main_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/test/plinthtest"
)

// TestUpload brings images from files, through everything that can come between.
func TestUpload(t *testing.T) {
	s := plinthtest.Start(t, plinthtest.Options{})
	u := &uploader{user: &user{Standalone: s}, raw: s.Dir + "/disk.raw"}
	u.image = plinthtest.MustImage(t, s.Dir, "image.qcow2", plinthtest.Image{Files: map[string]string{"hello": "uploaded\n"}})
	writeRandom(t, u.raw, 24<<20, 1)
	for _, step := range []struct {
		name string
		test func(*testing.T, *uploader)
	}{
		{"a raw file becomes an image, and comes back", rawUpload},
		{"a qcow2 file becomes an image, and comes back as raw and as qcow2", qcow2Upload},
		{"through a forwarded port", forwardedUpload},
		{"the same again is no change, another file is refused", uploadAgain},
		{"what comes from a pipe", pipeUpload},
		{"the server is killed half-way", serverKilledInUpload},
		{"the command is killed half-way, and another file does not go on for it", commandKilledInUpload},
		{"a wrong checksum fails for good", wrongUpload},
		{"a file that is no image is refused while it is being sent", refusedUpload},
		{"who has no good token learns nothing", strangers},
		{"a download goes on with what is there", downloadResumed},
		{"a deleted image takes its upload with it", uploadDeleted},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, u) }) {
			return
		}
	}
}

func rawUpload(t *testing.T, u *uploader) {
	u.MustCLI("image", "upload", u.raw, "--name", "raw")
	u.sameContent(t, "raw", u.raw)
	u.noUploads(t)
	if out := u.MustCLI("image", "show", "raw", "-o", "json"); strings.Contains(out, "accessTokens") {
		t.Errorf("the token is still there:\n%s", out)
	}
	info, err := os.Stat(u.path("raw.back"))
	if err != nil || info.Sys().(*syscall.Stat_t).Blocks*512 > 19<<20 {
		t.Errorf("the file is not sparse: %+v, %v", info, err)
	}
}

func qcow2Upload(t *testing.T, u *uploader) {
	u.MustCLI("image", "upload", u.user.image.Path, "--name", "cow", "--checksum", u.user.image.SHA256)
	u.noUploads(t)
	u.MustCLI("image", "download", "cow", "-o", u.path("cow.raw"))
	u.MustCLI("image", "download", "cow", "--format", "qcow2", "-o", u.path("cow.qcow2"))
	qemuImg(t, "compare", "-f", "qcow2", "-F", "raw", u.user.image.Path, u.path("cow.raw"))
	qemuImg(t, "check", "-f", "qcow2", u.path("cow.qcow2"))
	qemuImg(t, "compare", "-f", "qcow2", "-F", "qcow2", u.user.image.Path, u.path("cow.qcow2"))
	stream := u.CLI("image", "download", "cow", "--format", "qcow2", "-o", "-")
	if stream.Code != 0 || os.WriteFile(u.path("stream.qcow2"), []byte(stream.Stdout), 0o600) != nil {
		t.Fatalf("download to the standard output: %s", stream.Stderr)
	}
	qemuImg(t, "check", "-f", "qcow2", u.path("stream.qcow2"))
	qemuImg(t, "compare", "-f", "qcow2", "-F", "qcow2", u.user.image.Path, u.path("stream.qcow2"))
	u.refused(t, 4, []string{"exists", "--force"}, "image", "download", "cow", "-o", u.path("cow.raw"))
	u.refused(t, 2, []string{"vmdk"}, "image", "download", "cow", "--format", "vmdk", "-o", u.path("cow.vmdk"))
}

// forwardedUpload plays kubectl port-forward.
func forwardedUpload(t *testing.T, u *uploader) {
	var nodes struct {
		Status struct{ Address string }
	}
	if err := json.Unmarshal([]byte(u.MustCLI("node", "show", u.NodeName, "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var forwarded atomic.Int64
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", nodes.Status.Address)
			if err != nil {
				from.Close()
				continue
			}
			go func() {
				n, _ := io.Copy(to, from) // ends with the connection
				forwarded.Add(n)
				to.Close()
			}()
			go func() { _, _ = io.Copy(from, to); from.Close() }()
		}
	}()
	u.MustCLI("image", "upload", u.raw, "--name", "forwarded", "--via", l.Addr().String())
	u.sameContent(t, "forwarded", u.raw, "--via", l.Addr().String())
	if n := forwarded.Load(); n < 16<<20 {
		t.Errorf("only %d bytes were sent through the port", n)
	}
	u.refused(t, 2, []string{"--via", "host:port"}, "image", "upload", u.raw, "--name", "nowhere", "--via", "nowhere")
	u.MustCLI("image", "rm", "forwarded")
}

func uploadAgain(t *testing.T, u *uploader) {
	if out := u.MustCLI("image", "upload", u.raw, "--name", "raw"); !strings.Contains(out, "is this file") {
		t.Errorf("again: %q", out)
	}
	if out := u.MustCLI("image", "upload", u.user.image.Path, "--name", "cow", "--checksum", u.user.image.SHA256); !strings.Contains(out, "is this file") {
		t.Errorf("a QCOW2 file again: %q", out)
	}
	u.refused(t, 4, []string{"is not", "image rm"}, "image", "upload", u.user.image.Path, "--name", "raw")
	u.refused(t, 2, []string{"--name"}, "image", "upload", u.raw)
	u.refused(t, 2, []string{"no such file"}, "image", "upload", u.path("nowhere"), "--name", "nowhere")
}

func pipeUpload(t *testing.T, u *uploader) {
	cmd := u.command("image", "upload", "-", "--name", "pipe")
	in, err := os.Open(u.raw)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd.Stdin = io.MultiReader(in) // not a file: a pipe is made
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	u.sameContent(t, "pipe", u.raw)
}

func serverKilledInUpload(t *testing.T, u *uploader) {
	cmd, out := u.begin(t, "killed", u.raw)
	u.untilArrived(t, "killed", 4<<20)
	u.Kill()
	u.Restart()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	u.sameContent(t, "killed", u.raw)
	if n := u.received(t); n > 21<<20 {
		t.Errorf("%d bytes arrived after the restart: it did not go on where it was", n)
	}
}

func commandKilledInUpload(t *testing.T, u *uploader) {
	before := u.received(t)
	cmd, _ := u.begin(t, "interrupted", u.raw)
	u.untilArrived(t, "interrupted", 4<<20)
	_ = cmd.Process.Kill() // fails only when it has ended
	_ = cmd.Wait()
	other := u.path("other.raw")
	writeRandom(t, other, 24<<20, 2)
	u.refused(t, 4, []string{"not the file whose upload has begun"}, "image", "upload", other, "--name", "interrupted")
	u.MustCLI("image", "upload", u.raw, "--name", "interrupted")
	u.sameContent(t, "interrupted", u.raw)
	if n := u.received(t) - before; n > 25<<20 {
		t.Errorf("%d bytes arrived for a file of %d", n, 24<<20)
	}
}

func wrongUpload(t *testing.T, u *uploader) {
	sum := strings.Repeat("0", 64)
	u.refused(t, 8, []string{sum}, "image", "upload", u.raw, "--name", "wrong", "--checksum", sum)
	u.refused(t, 8, []string{"image rm wrong"}, "image", "upload", u.raw, "--name", "wrong", "--checksum", sum)
	u.noUploads(t)
	u.MustCLI("image", "rm", "wrong")
}

func refusedUpload(t *testing.T, u *uploader) {
	page := u.path("page.html")
	if err := os.WriteFile(page, append([]byte("<!DOCTYPE html><html>"), make([]byte, 64<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	u.refused(t, 2, []string{"web page"}, "image", "upload", page, "--name", "page", "--limit-rate", "8Mi")
	u.noUploads(t)
	u.MustCLI("image", "rm", "page")
}

func strangers(t *testing.T, u *uploader) {
	var node struct{ Status struct{ Address string } }
	if err := json.Unmarshal([]byte(u.MustCLI("node", "show", "test-node", "-o", "json")), &node); err != nil {
		t.Fatal(err)
	}
	uid := u.uid(t, "raw")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	said := map[string]bool{}
	for _, tc := range []struct{ method, path, authorization string }{
		{"GET", "/v1/images/" + uid + "/manifest", ""},
		{"GET", "/v1/images/" + uid + "/data", "Bearer wrong-secret"},
		{"GET", "/v1/images/" + uid + "/data", "Basic wrong-secret"},
		{"GET", "/v1/images/00000000-0000-0000-0000-000000000000/data", "Bearer wrong-secret"},
		{"GET", "/v1/images/..%2f..%2fetc/data", "Bearer wrong-secret"},
		{"POST", "/v1/uploads/" + uid, "Bearer wrong-secret"},
		{"PATCH", "/v1/uploads/" + uid, ""},
		{"DELETE", "/v1/uploads/" + uid, ""},
	} {
		req, err := http.NewRequest(tc.method, "https://"+node.Status.Address+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", tc.authorization)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if said[string(text)] = true; resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s %s is answered %d: %s", tc.method, tc.path, resp.StatusCode, text)
		}
	}
	if len(said) != 1 {
		t.Errorf("strangers are told different things: %v", said)
	}
	if u.metric(t, `plinth_transfer_refused_total{reason="wrong-token"}`) < 4 || strings.Contains(u.Log(), "wrong-secret") {
		t.Error("refusals are not counted, or the log has a token")
	}
}

func downloadResumed(t *testing.T, u *uploader) {
	content, err := os.ReadFile(u.raw)
	if err != nil {
		t.Fatal(err)
	}
	out := u.path("resumed.raw")
	part := bytes.Clone(content[:8<<20])
	part[3<<20]++                                                       // a chunk of it is bad
	part = append(part, bytes.Repeat([]byte("x"), 24<<20-len(part))...) // and what shall be a hole is not
	if err := os.WriteFile(out+".part", part, 0o600); err != nil {
		t.Fatal(err)
	}
	before := u.metric(t, "plinth_served_bytes_total")
	u.MustCLI("image", "download", "raw", "-o", out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file differs (%v)", err)
	}
	if n := u.metric(t, "plinth_served_bytes_total") - before; n > 13<<20 {
		t.Errorf("%d bytes came, although 6 MiB of 18 were there and good", n)
	}
}

func uploadDeleted(t *testing.T, u *uploader) {
	cmd, _ := u.begin(t, "deleted", u.raw)
	u.untilArrived(t, "deleted", 1<<20)
	u.MustCLI("image", "rm", "deleted")
	if err := cmd.Wait(); err == nil {
		t.Error("the upload of an image that was deleted succeeded")
	}
	u.noUploads(t)
}

// TestUploadExpires has its own server, whose uploads may not pause for long.
func TestUploadExpires(t *testing.T) {
	s := plinthtest.Start(t, plinthtest.Options{Args: []string{"--upload-idle", "2s"}})
	u := &uploader{user: &user{Standalone: s}, raw: s.Dir + "/disk.raw"}
	writeRandom(t, u.raw, 24<<20, 1)
	cmd, out := u.begin(t, "idle", u.raw)
	u.untilArrived(t, "idle", 4<<20)
	_ = cmd.Process.Signal(os.Interrupt) // fails only when it has ended
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 130 || !strings.Contains(out.String(), "to go on: plinth image upload") {
		t.Errorf("an interrupt ends with exit code %d:\n%s", cmd.ProcessState.ExitCode(), out)
	}
	u.refused(t, 5, []string{"idle for 2s and has expired; delete the image"}, "image", "wait", "idle")
	u.refused(t, 5, []string{"has expired", "image rm idle"}, "image", "upload", u.raw, "--name", "idle")
	u.noUploads(t)
	u.MustCLI("image", "rm", "idle")
	u.MustCLI("image", "upload", u.raw, "--name", "idle")
}

// TestUploadToAFullDisk has its own server, with a disk that can be filled.
func TestUploadToAFullDisk(t *testing.T) {
	s := plinthtest.Start(t, plinthtest.Options{Pool: "512Mi"})
	u := &uploader{user: &user{Standalone: s}, raw: s.Dir + "/disk.raw"}
	writeRandom(t, u.raw, 64<<20, 1)
	filler := filepath.Join(s.DataDir, "disk", "pool", "filler")
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(filler), &st); err != nil {
		t.Fatal(err)
	}
	cmd, out := u.begin(t, "full", u.raw)
	u.untilArrived(t, "full", 1<<20)
	if err := exec.Command("fallocate", "-l", fmt.Sprint(int64(st.Bavail)*st.Bsize-20<<20), filler).Run(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 7 || !strings.Contains(out.String(), "is full") || !strings.Contains(out.String(), "to go on:") {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	u.MustCLI("image", "upload", u.raw, "--name", "full", "--wait=false")
	if info, err := os.Stat(filepath.Join(u.staging(), "upload-"+u.uid(t, "full"), u.uid(t, "full"))); err == nil && info.Size() != 64<<20 {
		t.Errorf("%d bytes are there of %d", info.Size(), 64<<20)
	}
}
