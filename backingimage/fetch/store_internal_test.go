package fetch

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// copyRange does what sharing an extent does, by copying, and asks for the same alignment.
func copyRange(fd int, r *unix.FileCloneRange) error {
	if r.Src_offset%blockBytes != 0 || r.Dest_offset%blockBytes != 0 || r.Src_length%blockBytes != 0 || r.Src_length == 0 {
		return unix.EINVAL
	}
	p := make([]byte, r.Src_length)
	if n, err := unix.Pread(int(r.Src_fd), p, int64(r.Src_offset)); err != nil || n < len(p) {
		return unix.EIO
	}
	_, err := unix.Pwrite(fd, p, int64(r.Dest_offset))
	return err
}

// mustStore stores a chunk whose extents lie in an origin, which has the same data but for its bytes inverted where no
// extent is, and returns the file.
func mustStore(tb testing.TB, chunk format.Chunk, origin []byte) []byte {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "origin"), origin, 0o600); err != nil {
		tb.Fatal(err)
	}
	from, err := os.Open(filepath.Join(dir, "origin"))
	if err != nil {
		tb.Fatal(err)
	}
	defer from.Close()
	c, err := newContentFile(filepath.Join(dir, "content"), manifest.ChunkBytes, new(manifest.Builder))
	if err != nil {
		tb.Fatal(err)
	}
	defer c.file.Close()
	c.origin = from
	if err := c.store(chunk); err != nil {
		tb.Fatal(err)
	}
	got, err := os.ReadFile(c.file.Name())
	if err != nil {
		tb.Fatal(err)
	}
	return got
}

func TestStoreSharesWhatItCanAndWritesTheRest(t *testing.T) {
	defer func(f func(int, *unix.FileCloneRange) error) { cloneRange = f }(cloneRange)
	data := bytes.Repeat([]byte{1, 2, 3, 4, 5}, manifest.ChunkBytes/5+1)[:manifest.ChunkBytes]
	clear(data[256<<10 : 512<<10])
	origin := make([]byte, 4<<20)
	var extents []format.Extent
	for i, e := range []struct{ at, bytes, host int64 }{
		{0, 300 << 10, 4096}, {400 << 10, 200 << 10, 1 << 20}, {700 << 10, 100 << 10, 2<<20 + 512}, {1 << 20, 70<<10 + 100, 2500 << 10}, {1900 << 10, 20 << 10, 3 << 20},
	} {
		extents = append(extents, format.Extent{At: e.at, Bytes: e.bytes, Host: e.host})
		if copy(origin[e.host:], data[e.at:e.at+e.bytes]) == 0 {
			t.Fatalf("extent %d lies outside of the origin", i)
		}
	}
	for _, failAt := range []int{0, 1, 2, 100} {
		calls := 0
		cloneRange = func(fd int, r *unix.FileCloneRange) error {
			if calls++; calls > failAt {
				return unix.EOPNOTSUPP
			}
			return copyRange(fd, r)
		}
		if got := mustStore(t, format.Chunk{Data: data, Extents: extents}, origin); !bytes.Equal(got, data) {
			t.Errorf("the content differs when sharing fails after %d times", failAt)
		}
		if want := min(failAt+1, 3); calls != want {
			t.Errorf("%d times shared, want %d", calls, want)
		}
	}
}
