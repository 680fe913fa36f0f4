package format_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// TestWriteQCOW2 writes contents both ways, and has qemu-img and ourselves read them.
func TestWriteQCOW2(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("left out: qemu-img is not installed")
	}
	for _, tc := range []struct {
		name  string
		bytes int64
		data  []int64 // offsets at which 100,000 random bytes are
	}{
		{"a sector", 512, []int64{0}},
		{"nothing but zeros", 8 << 20, nil},
		{"an odd end", 5<<20 + 512, []int64{0, 4 << 20, 5 << 20}},
		{"data in the middle of clusters", 40 << 20, []int64{100, 3<<20 + 77, 39 << 20}},
		{"many L2 tables, most of them missing", 5 << 30, []int64{7, 600 << 20, 3<<30 - 5, 5<<30 - 100_000}},
		{"a size without any end in sight", 900 << 30, []int64{800 << 30}},
	} {
		for way, write := range map[string]func(*testing.T, string, *sparse){"file": writeFile, "stream": writeStream} {
			t.Run(tc.name+", as a "+way, func(t *testing.T) {
				c := newSparse(t, tc.bytes, tc.data)
				path := filepath.Join(t.TempDir(), "disk.qcow2")
				write(t, path, c)
				mustQemuImg(t, "check", "-f", "qcow2", path)
				mustQemuImg(t, "compare", "-f", "raw", "-F", "qcow2", c.path, path)
				c.compare(t, path)
			})
		}
	}
}

// sparse is a sparse raw file and the chunks of it that are not zeros.
type sparse struct {
	path   string
	bytes  int64
	chunks []format.Chunk // in order
}

func newSparse(t *testing.T, bytes int64, data []int64) *sparse {
	t.Helper()
	c := &sparse{path: filepath.Join(t.TempDir(), "disk.raw"), bytes: bytes}
	f, err := os.Create(c.path)
	mustNil(t, err)
	defer f.Close()
	random := rand.NewChaCha8([32]byte{1})
	for _, at := range data {
		piece := make([]byte, min(100_000, bytes-at))
		_, _ = random.Read(piece)
		_, err := f.WriteAt(piece, at)
		mustNil(t, err)
	}
	mustNil(t, f.Truncate(bytes))
	seen := map[int64]bool{}
	for _, at := range data {
		for _, index := range []int64{at / manifest.ChunkBytes, (min(at+100_000, bytes) - 1) / manifest.ChunkBytes} {
			if seen[index] {
				continue
			}
			seen[index] = true
			chunk := make([]byte, min(manifest.ChunkBytes, bytes-index*manifest.ChunkBytes))
			_, err := f.ReadAt(chunk, index*manifest.ChunkBytes)
			mustNil(t, err)
			c.chunks = append(c.chunks, format.Chunk{Index: index, Data: chunk})
		}
	}
	return c
}

func (c *sparse) used(index int64) bool {
	for _, chunk := range c.chunks {
		if chunk.Index == index {
			return true
		}
	}
	return false
}

// compare reads a qcow2 file with our own reader.
func (c *sparse) compare(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	mustNil(t, err)
	defer f.Close()
	info, err := f.Stat()
	mustNil(t, err)
	q, err := format.Open(f, info.Size(), format.Limits{})
	mustNil(t, err)
	if q.VirtualBytes() != c.bytes {
		t.Errorf("it has %d bytes, not %d", q.VirtualBytes(), c.bytes)
	}
	want := map[int64][]byte{}
	for _, chunk := range c.chunks {
		want[chunk.Index] = chunk.Data
	}
	var got = map[int64][]byte{}
	var lock = make(chan struct{}, 1)
	mustNil(t, q.Convert(context.Background(), func(chunk format.Chunk) error {
		lock <- struct{}{}
		defer func() { <-lock }()
		got[chunk.Index] = bytes.Clone(chunk.Data)
		return nil
	}))
	for index, data := range want {
		if !bytes.Equal(got[index], data) {
			t.Errorf("chunk %d differs", index)
		}
		delete(got, index)
	}
	for index, data := range got {
		if !manifest.AllZero(data) {
			t.Errorf("chunk %d is not zeros", index)
		}
	}
}

func writeFile(t *testing.T, path string, c *sparse) {
	t.Helper()
	f, err := os.Create(path)
	mustNil(t, err)
	defer f.Close()
	q := format.NewQCOW2File(f, c.bytes)
	for _, chunk := range c.chunks {
		mustNil(t, q.Add(chunk))
	}
	mustNil(t, q.Close())
}

func writeStream(t *testing.T, path string, c *sparse) {
	t.Helper()
	f, err := os.Create(path)
	mustNil(t, err)
	defer f.Close()
	q, err := format.NewQCOW2Stream(struct{ *os.File }{f}, c.bytes, c.used)
	mustNil(t, err)
	for _, chunk := range c.chunks {
		mustNil(t, q.Add(chunk))
	}
	mustNil(t, q.Close())
}

func mustQemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Errorf("qemu-img %v: %v\n%s", args, err, out)
	}
}

func mustNil(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
