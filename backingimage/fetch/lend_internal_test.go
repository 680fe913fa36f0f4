package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/source"
)

// localSource is a source whose bytes are in a file of this machine. It breaks off at a byte, when that is not 0.
type localSource struct {
	file   *os.File
	breaks int64
}

func (s localSource) Open(_ context.Context, offset int64, _ string) (*source.Body, error) {
	info, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	body := io.Reader(io.NewSectionReader(s.file, offset, info.Size()-offset))
	if s.breaks > 0 {
		if offset >= s.breaks {
			return nil, backingimage.Errorf(backingimage.NotReady, "it breaks off")
		}
		body = io.LimitReader(body, s.breaks-offset)
	}
	return &source.Body{ReadCloser: io.NopCloser(body), Offset: offset, Bytes: info.Size(), Validator: "v1"}, nil
}
func (localSource) String() string        { return "local" }
func (localSource) Identity() string      { return "local" }
func (s localSource) LocalFile() *os.File { return s.file }

// copyFile does what a filesystem that can share does, on any.
func copyFile(to, from int) error {
	buffer := make([]byte, 1<<20)
	for offset := int64(0); ; {
		n, err := unix.Pread(from, buffer, offset)
		if err != nil || n == 0 {
			return err
		}
		if _, err := unix.Pwrite(to, buffer[:n], offset); err != nil {
			return err
		}
		offset += int64(n)
	}
}

// lending makes a local file of some MiB with zeros in it, and clones files with clone until the test ends.
func lending(t *testing.T, clone func(to, from int) error) (want []byte, file *os.File) {
	t.Helper()
	before := cloneFile
	cloneFile = clone
	t.Cleanup(func() { cloneFile = before })
	want = make([]byte, 9<<20+1000)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(want)
	clear(want[1<<20 : 3<<20])
	path := filepath.Join(t.TempDir(), "upload")
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return want, file
}

func mustHold(t *testing.T, dir string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, disk.ImageFile))
	if err != nil || len(got)%512 != 0 || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("the content differs (%d bytes, %v)", len(got), err)
	}
	if err := Verify(context.Background(), dir, nil); err != nil {
		t.Error(err)
	}
}

func TestALocalSourceIsClonedAndNotWrittenAgain(t *testing.T) {
	clones := 0
	want, file := lending(t, func(to, from int) error { clones++; return copyFile(to, from) })
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := Run(t.Context(), Job{Dir: dir, Image: "local", ImageUID: "uid", Source: localSource{file: file}}, nil); err != nil {
		t.Fatal(err)
	}
	mustHold(t, dir, want)
	if clones != 2 {
		t.Errorf("it was cloned %d times, not to try and in the end", clones)
	}
}

func TestALocalSourceThatCannotBeClonedIsWritten(t *testing.T) {
	want, file := lending(t, func(int, int) error { return unix.EOPNOTSUPP })
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := Run(t.Context(), Job{Dir: dir, Image: "local", ImageUID: "uid", Source: localSource{file: file}}, nil); err != nil {
		t.Fatal(err)
	}
	mustHold(t, dir, want)
}

func TestWhatWasNeverWrittenIsNotTakenForWritten(t *testing.T) {
	for name, clone := range map[string]func(to, from int) error{"cloned again": copyFile, "not cloned again": func(int, int) error { return unix.EXDEV }} {
		t.Run(name, func(t *testing.T) {
			want, file := lending(t, copyFile)
			job := Job{Dir: filepath.Join(t.TempDir(), "image"), Image: "local", ImageUID: "uid", Source: localSource{file, 5 << 20}, Options: Options{Patience: time.Millisecond}}
			if _, err := Run(t.Context(), job, nil); !backingimage.Is(err, backingimage.NotReady) {
				t.Fatalf("got %v", err)
			}
			if _, err := os.Stat(filepath.Join(job.Dir, checkpointFile)); errors.Is(err, os.ErrNotExist) {
				t.Fatal("there is no checkpoint to go on from")
			}
			if err := os.Truncate(filepath.Join(job.Dir, disk.ImageFile), 0); err != nil { // nothing vouches for what is in it
				t.Fatal(err)
			}
			cloneFile, job.Source = clone, localSource{file: file}
			if _, err := Run(t.Context(), job, nil); err != nil {
				t.Fatal(err)
			}
			mustHold(t, job.Dir, want)
		})
	}
}
