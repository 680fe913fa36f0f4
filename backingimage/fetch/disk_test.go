package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

// mustMount mounts a new filesystem and returns its directory.
func mustMount(tb testing.TB, args ...string) string {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root to mount a filesystem; left out: what happens on a full disk, and on one that can share extents")
	}
	dir := tb.TempDir()
	mustRun(tb, "mount", append(args, dir)...)
	tb.Cleanup(func() { mustRun(tb, "umount", dir) })
	return dir
}

func TestAFullDiskIsFullAndLeftAsItWas(t *testing.T) {
	dir := mustMount(t, "-t", "tmpfs", "-o", "size=6m", "tmpfs")
	content := image(1, 40<<20)
	small := mustConvert(t, bytes.Repeat([]byte{1}, 40<<20), "-O", "vmdk", "-o", "subformat=streamOptimized")
	for name, c := range map[string]struct {
		file  []byte
		needs string
	}{
		"raw": {content, "41943040 bytes"}, "qcow2": {mustQCOW2(t, content), "41943040 bytes"},
		"raw+gz": {mustPack(t, "gz", bytes.Repeat([]byte{1}, 40<<20)), "make up to"}, "vmdk": {small, "41943040 bytes"},
		"vmdk+gz": {mustPack(t, "gz", small), "41943040 bytes"},
	} {
		j := job(t, mustServe(t, &server{content: c.file}))
		j.Dir = filepath.Join(dir, "staging")
		if _, err := fetch.Run(context.Background(), j, nil); !backingimage.Is(err, backingimage.Full) || !strings.Contains(err.Error(), c.needs) {
			t.Errorf("%s: got %v error %v", name, backingimage.KindOf(err), err)
		}
		mustBeGone(t, j.Dir)
		mustBeEmpty(t, dir)
	}
}

// mustBeEmpty waits until a filesystem has all its room again. The kernel takes a moment to let go of a removed file that was
// mounted where a converter could see it, after that has ended.
func mustBeEmpty(tb testing.TB, dir string) {
	tb.Helper()
	var st unix.Statfs_t
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if err := unix.Statfs(dir, &st); err != nil {
			tb.Fatal(err)
		}
		if st.Bfree == st.Blocks {
			return
		}
	}
	tb.Errorf("%s has %d of %d blocks free after all is gone", dir, st.Bfree, st.Blocks)
}

func TestADiskThatCanSharesWhatItConverts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a filesystem; left out: sharing extents on XFS")
	}
	file := filepath.Join(t.TempDir(), "xfs")
	mustRun(t, "truncate", "-s", "400M", file)
	mustRun(t, "mkfs.xfs", "-q", "-m", "reflink=1", file)
	loop := mustRun(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { mustRun(t, "losetup", "--detach", loop) })
	dir := mustMount(t, "-t", "xfs", loop)
	content := image(1, 20<<20+1536)
	for name, options := range map[string][]string{"64k": nil, "4k": {"-o", "cluster_size=4k"}, "512": {"-o", "cluster_size=512"}, "zlib": {"-c"}} {
		j := job(t, mustServe(t, &server{content: mustQCOW2(t, content, options...)}))
		j.Dir = filepath.Join(dir, "staging-"+name)
		result, err := fetch.Run(context.Background(), j, nil)
		if err != nil {
			t.Fatal(err)
		}
		mustEqual(t, j.Dir, content, result)
		if result.RealBytes > 12<<20 {
			t.Errorf("%s: the copy takes %d bytes", name, result.RealBytes)
		}
	}
}

// mustCopy makes a finished copy of content.
func mustCopy(tb testing.TB, content []byte) (string, fetch.Result) {
	tb.Helper()
	j := job(tb, mustServe(tb, &server{content: content}))
	result, err := fetch.Run(context.Background(), j, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return j.Dir, result
}

func TestCopyLocalMakesTheSameCopy(t *testing.T) {
	content := image(1, 9<<20+513)
	from, result := mustCopy(t, content)
	to := filepath.Join(t.TempDir(), "staging")
	if err := os.MkdirAll(filepath.Join(to, "left by a kill"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := fetch.CopyLocal(context.Background(), from, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.ContentDigest != result.ContentDigest || got.Checksum != result.Checksum {
			t.Errorf("the result is %+v, want %+v", got, result)
		}
		mustEqual(t, to, content, got)
	}
}

func TestABadByteIsFoundAndNeverCopied(t *testing.T) {
	content := image(1, 9<<20)
	for name, c := range map[string]struct {
		at     int64
		copies bool
	}{
		"in data":   {5 << 20, false},
		"in a hole": {250 << 10, false},
	} {
		from, _ := mustCopy(t, content)
		if err := overwrite(filepath.Join(from, disk.ImageFile), c.at, []byte{content[c.at] ^ 1}); err != nil {
			t.Fatal(err)
		}
		err := fetch.Verify(context.Background(), from, nil)
		var bad *fetch.BadChunks
		if !backingimage.Is(err, backingimage.Corrupt) || !errors.As(err, &bad) || len(bad.Chunks) != 1 || bad.Chunks[0] != c.at/manifest.ChunkBytes {
			t.Errorf("%s: Verify says %v", name, err)
		}
		to := filepath.Join(t.TempDir(), "staging")
		if _, err := fetch.CopyLocal(context.Background(), from, to, nil); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%s: CopyLocal says %v", name, err)
		}
		mustBeGone(t, to)
	}
}

func TestABadByteInAZeroChunkIsFound(t *testing.T) {
	content := image(1, 9<<20)
	clear(content[2<<20 : 4<<20])
	dir, _ := mustCopy(t, content)
	if err := overwrite(filepath.Join(dir, disk.ImageFile), 3<<20, []byte{1}); err != nil {
		t.Fatal(err)
	}
	var bad *fetch.BadChunks
	if err := fetch.Verify(context.Background(), dir, nil); !errors.As(err, &bad) || bad.Chunks[0] != 1 {
		t.Errorf("Verify says %v", err)
	}
}

func TestLoadTellsWhatIsMissing(t *testing.T) {
	if _, err := fetch.Load(t.TempDir()); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("an empty directory: %v", err)
	}
	content := image(1, 3<<20)
	for name, do := range map[string]func(dir string) error{
		"no content":       func(dir string) error { return os.Remove(filepath.Join(dir, disk.ImageFile)) },
		"short content":    func(dir string) error { return os.Truncate(filepath.Join(dir, disk.ImageFile), 1<<20) },
		"no manifest":      func(dir string) error { return os.Remove(filepath.Join(dir, disk.ManifestFile)) },
		"damaged manifest": func(dir string) error { return overwrite(filepath.Join(dir, disk.ManifestFile), 30, []byte{0xff}) },
		"damaged record":   func(dir string) error { return os.Truncate(filepath.Join(dir, disk.CopyFile), 20) },
		"another's manifest": func(dir string) error {
			other, _ := mustCopy(t, image(2, 3<<20))
			return os.Rename(filepath.Join(other, disk.ManifestFile), filepath.Join(dir, disk.ManifestFile))
		},
	} {
		dir, _ := mustCopy(t, content)
		if err := do(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := fetch.Load(dir); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
