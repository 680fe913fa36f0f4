package servertest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
)

// Image makes bytes as images have them, data and zeros between, a multiple of 512 of them.
func Image(seed byte, n int) []byte {
	r := rand.NewChaCha8([32]byte{seed})
	p := make([]byte, n)
	for at := 0; at < n; at += 300 << 10 {
		r.Read(p[at:min(at+200<<10, n)])
	}
	return p
}

// MustQCOW2 makes a qcow2 image of content.
func MustQCOW2(tb testing.TB, content []byte) []byte {
	tb.Helper()
	raw, image := filepath.Join(tb.TempDir(), "raw"), filepath.Join(tb.TempDir(), "qcow2")
	must(tb, os.WriteFile(raw, content, 0o600))
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image).CombinedOutput(); err != nil {
		tb.Fatalf("qemu-img: %v: %s", err, out)
	}
	file, err := os.ReadFile(image)
	must(tb, err)
	return file
}

// Job fetches from a source into a new directory, with little patience.
func Job(tb testing.TB, s source.Source) fetch.Job {
	return fetch.Job{
		Dir: filepath.Join(tb.TempDir(), "staging"), Image: "fedora", ImageUID: "uid", Source: s,
		Options: fetch.Options{Patience: 20 * time.Second},
	}
}

// MustFetch fetches, and checks that the copy is of content.
func MustFetch(tb testing.TB, job fetch.Job, content []byte) fetch.Result {
	tb.Helper()
	result, err := fetch.Run(context.Background(), job, nil)
	must(tb, err)
	got, err := os.ReadFile(filepath.Join(job.Dir, disk.ImageFile))
	must(tb, err)
	if !bytes.Equal(got, content) {
		tb.Errorf("the content differs: %d bytes, want %d", len(got), len(content))
	}
	return result
}
