package fetch

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/source"
)

// localSource is a source whose bytes are in a file of this machine.
type localSource struct{ file *os.File }

func (s localSource) Open(_ context.Context, offset int64, _ string) (*source.Body, error) {
	info, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	rest := io.NewSectionReader(s.file, offset, info.Size()-offset)
	return &source.Body{ReadCloser: io.NopCloser(rest), Offset: offset, Bytes: info.Size(), Validator: "v1"}, nil
}
func (localSource) String() string        { return "local" }
func (localSource) Identity() string      { return "local" }
func (s localSource) LocalFile() *os.File { return s.file }

func TestALocalSourceIsSharedAndNotWrittenAgain(t *testing.T) {
	defer func(f func(int, *unix.FileCloneRange) error) { cloneRange = f }(cloneRange)
	var shared int64
	cloneRange = func(fd int, r *unix.FileCloneRange) error {
		shared += int64(r.Src_length)
		return copyRange(fd, r)
	}
	want := make([]byte, 5<<20+1000)
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
	defer file.Close()
	dir := filepath.Join(t.TempDir(), "image")
	if _, err := Run(t.Context(), Job{Dir: dir, Image: "local", ImageUID: "uid", Source: localSource{file}}, nil); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, disk.ImageFile))
	if err != nil || !bytes.Equal(got[:len(want)], want) || len(got)%512 != 0 {
		t.Errorf("the content differs (%d bytes, %v)", len(got), err)
	}
	if shared != 3<<20 {
		t.Errorf("%d bytes were shared, not the 3 MiB of whole blocks that are not zeros", shared)
	}
}
