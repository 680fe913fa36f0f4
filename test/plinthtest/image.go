package plinthtest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Image to make: a whole-disk ext4 filesystem that holds Files.
type Image struct {
	Format string            // "qcow2" (the default, compressed) or "raw"
	Size   string            // virtual size as mkfs takes it; default "64M"
	Files  map[string]string // content by name
}

// ImageFile is an image that was made.
type ImageFile struct {
	Path   string
	SHA256 string // of the file, in hexadecimal
}

// MustImage makes an image in dir. Without the programs that make images, the test is skipped.
func MustImage(tb testing.TB, dir, name string, i Image) ImageFile {
	tb.Helper()
	content := filepath.Join(tb.TempDir(), "content")
	must(tb, os.Mkdir(content, 0o755))
	for file, text := range i.Files {
		must(tb, os.WriteFile(filepath.Join(content, file), []byte(text), 0o644))
	}
	if i.Size == "" {
		i.Size = "64M"
	}
	raw := filepath.Join(tb.TempDir(), "raw")
	mustRun(tb, "mkfs.ext4", "-q", "-F", "-d", content, raw, i.Size)
	path := filepath.Join(dir, name)
	if i.Format == "raw" {
		mustRun(tb, "cp", "--sparse=always", raw, path)
	} else {
		mustRun(tb, "qemu-img", "convert", "-c", "-O", "qcow2", raw, path)
	}
	return ImageFile{Path: path, SHA256: mustSHA256(tb, path)}
}

// Serve serves dir over HTTP on loopback until the test ends, and returns its URL without a slash at the end.
func Serve(tb testing.TB, dir string) string {
	tb.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	tb.Cleanup(server.Close)
	return server.URL
}

func mustSHA256(tb testing.TB, path string) string {
	tb.Helper()
	f, err := os.Open(path)
	must(tb, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(tb, err)
	return hex.EncodeToString(h.Sum(nil))
}

func mustRun(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if _, err := exec.LookPath(name); err != nil {
		tb.Skipf("left out: %s is not installed, and the test's image is made with it", name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
