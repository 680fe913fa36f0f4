package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

// published is a finished copy in its place on a disk that can reflink.
type published struct {
	*disk.Disk
	uid     string
	content []byte
}

func mustPublish(tb testing.TB, content []byte) *published {
	tb.Helper()
	p := &published{disktest.MustOpen(tb, filepath.Join(disktest.MustFilesystem(tb, "xfs", 400<<20), "disk"), 0), "uid-1", content}
	j := job(tb, mustServe(tb, &server{content: content}))
	j.Dir = p.Layout().StagedImage(p.uid)
	if _, err := fetch.Run(context.Background(), j, nil); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { must(tb, p.RemoveImage(p.uid)) })
	must(tb, p.PublishImage(p.uid))
	return p
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// mustReflink makes the file to share all blocks of another.
func mustReflink(tb testing.TB, from, to string) {
	tb.Helper()
	in, err := os.Open(from)
	must(tb, err)
	defer in.Close()
	out, err := os.Create(to)
	must(tb, err)
	defer out.Close()
	must(tb, unix.IoctlFileClone(int(out.Fd()), int(in.Fd())))
}

func (p *published) dir() string  { return p.Layout().Image(p.uid) }
func (p *published) file() string { return filepath.Join(p.dir(), disk.ImageFile) }

// spoil flips a byte at each offset, and marks what Verify finds.
func (p *published) spoil(tb testing.TB, offsets ...int64) []int64 {
	tb.Helper()
	must(tb, p.ChangeImage(p.uid, func(f *os.File) error {
		for _, at := range offsets {
			if _, err := f.WriteAt([]byte{p.content[at] ^ 1}, at); err != nil {
				return err
			}
		}
		return f.Sync()
	}))
	err := fetch.Scrub(context.Background(), p.dir(), fetch.ScrubOptions{Found: func(chunk int64) error { return fetch.MarkDamaged(p.dir(), chunk) }}, nil)
	var bad *fetch.BadChunks
	if !errors.As(err, &bad) {
		tb.Fatalf("Scrub says %v", err)
	}
	marked, err := fetch.Damage(p.dir())
	if err != nil || !slices.Equal(marked, bad.Chunks) {
		tb.Fatalf("marked are %d, found were %d (%v)", marked, bad.Chunks, err)
	}
	return marked
}

func (p *published) repair(givers ...fetch.Giver) (map[string][]int64, error) {
	return fetch.Repair(context.Background(), fetch.RepairJob{Dir: p.dir(), Givers: givers, Change: func(change func(*os.File) error) error { return p.ChangeImage(p.uid, change) }}, nil)
}

// mustBeWhole checks that the copy is what it was, sealed, and clonable.
func (p *published) mustBeWhole(tb testing.TB) {
	tb.Helper()
	got, err := os.ReadFile(p.file())
	if err != nil || !bytes.Equal(got, p.content) {
		tb.Errorf("the content differs (%v)", err)
	}
	if err := errors.Join(fetch.Verify(context.Background(), p.dir(), nil), fetch.Check(p.dir())); err != nil {
		tb.Error(err)
	}
	if f, err := os.OpenFile(p.file(), os.O_RDWR, 0); err == nil {
		f.Close()
		tb.Error("the copy can be written to")
	}
}

// giver gives true chunks, except those that it spoils.
func (p *published) giver(name string, lies ...int64) fetch.Giver {
	return fetch.Giver{Name: name, Chunk: func(_ context.Context, index int64, _ manifest.Digest) ([]byte, error) {
		chunk := bytes.Clone(p.content[index*manifest.ChunkBytes : min((index+1)*manifest.ChunkBytes, int64(len(p.content)))])
		if slices.Contains(lies, index) {
			chunk[7] ^= 1
		}
		return chunk, nil
	}}
}

func without(name string, kind backingimage.Kind) fetch.Giver {
	return fetch.Giver{Name: name, Chunk: func(context.Context, int64, manifest.Digest) ([]byte, error) {
		return nil, backingimage.Errorf(kind, "%s it is", kind)
	}}
}

func TestRepair(t *testing.T) {
	content := image(1, 13<<20+512)
	clear(content[4<<20 : 6<<20]) // chunk 2
	p := mustPublish(t, content)
	clone := filepath.Join(string(p.Layout()), "clone")
	for name, c := range map[string]struct {
		offsets []int64
		givers  []fetch.Giver
		mended  map[string][]int64
	}{
		"one byte":                          {[]int64{100}, []fetch.Giver{p.giver("peer")}, map[string][]int64{"peer": {0}}},
		"the last, short chunk":             {[]int64{13<<20 + 511}, []fetch.Giver{p.giver("peer")}, map[string][]int64{"peer": {6}}},
		"a chunk of zeros, of nobody":       {[]int64{5 << 20}, nil, map[string][]int64{fetch.Zeros: {2}}},
		"each chunk of who has it":          {[]int64{1, 3 << 20, 9 << 20}, []fetch.Giver{p.giver("liar", 1), p.giver("peer")}, map[string][]int64{"liar": {0, 4}, "peer": {1}}},
		"one who is away, one who has none": {[]int64{1}, []fetch.Giver{without("away", backingimage.NotReady), without("none", backingimage.NotFound), p.giver("peer")}, map[string][]int64{"peer": {0}}},
	} {
		t.Run(name, func(t *testing.T) {
			p.spoil(t, c.offsets...)
			mustReflink(t, p.file(), clone)
			spoiled := mustRead(t, clone)
			if err := fetch.Check(p.dir()); !backingimage.Is(err, backingimage.NotReady) {
				t.Errorf("Check says %v", err)
			}
			mended, err := p.repair(c.givers...)
			if err != nil || fmt.Sprint(mended) != fmt.Sprint(c.mended) {
				t.Fatalf("mended %v, want %v: %v", mended, c.mended, err)
			}
			p.mustBeWhole(t)
			if !bytes.Equal(mustRead(t, clone), spoiled) {
				t.Error("what was cloned before has changed")
			}
		})
	}
}

func TestRepairThatNobodyCanMakeLeavesTheMark(t *testing.T) {
	p := mustPublish(t, image(1, 9<<20))
	bad := p.spoil(t, 1, 6<<20)
	for name, c := range map[string]struct {
		givers []fetch.Giver
		kind   backingimage.Kind
		says   string
	}{
		"nobody":                       {nil, backingimage.Corrupt, "nobody has them"},
		"who has none":                 {[]fetch.Giver{without("none", backingimage.NotFound)}, backingimage.Corrupt, "none: NotFound it is"},
		"who lies":                     {[]fetch.Giver{p.giver("liar", 0, 3)}, backingimage.Corrupt, "not what the manifest says"},
		"who is away":                  {[]fetch.Giver{without("away", backingimage.NotReady), without("none", backingimage.NotFound)}, backingimage.NotReady, "away: NotReady it is"},
		"who needs room that is taken": {[]fetch.Giver{without("full", backingimage.Full)}, backingimage.Full, "full"},
	} {
		_, err := p.repair(c.givers...)
		if !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v error %v", name, backingimage.KindOf(err), err)
		}
		if left, err := fetch.Damage(p.dir()); err != nil || !slices.Equal(left, bad) {
			t.Errorf("%s: left is %d, %v", name, left, err)
		}
	}
	if _, err := p.repair(p.giver("liar", 3)); !backingimage.Is(err, backingimage.Corrupt) {
		t.Errorf("one of two: %v", err)
	}
	if left, err := fetch.Damage(p.dir()); err != nil || !slices.Equal(left, []int64{3}) {
		t.Errorf("left is %d, %v", left, err)
	}
}

// What a kill leaves between the write of a chunk and the change of the mark: the mark, and perhaps a chunk that is right.
func TestRepairGoesOnAfterAKill(t *testing.T) {
	p := mustPublish(t, image(1, 9<<20))
	p.spoil(t, 1, 6<<20)
	must(t, p.ChangeImage(p.uid, func(f *os.File) error { _, err := f.WriteAt(p.content[:1<<20], 0); return err }))
	mended, err := p.repair(p.giver("peer", 0))
	if err != nil || fmt.Sprint(mended) != "map[peer:[3]]" {
		t.Fatalf("mended %v, %v", mended, err)
	}
	p.mustBeWhole(t)
}

func TestNothingIsMadeOfACopyThatIsDamaged(t *testing.T) {
	p := mustPublish(t, image(1, 9<<20))
	p.spoil(t, 1)
	to := p.Layout().StagedImage("uid-2")
	if _, err := fetch.CopyLocal(context.Background(), p.dir(), to, nil); !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("CopyLocal says %v", err)
	}
	if _, err := fetch.Clone(context.Background(), p.dir(), nearJob(p.Layout().Staging()), nil); !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("Clone says %v", err)
	}
}

func TestAMarkThatCannotBeReadCondemnsTheCopy(t *testing.T) {
	p := mustPublish(t, image(1, 9<<20))
	for _, text := range []string{"", "{", `{"chunks":[]}`, `{"chunks":[-1]}`, `{"chunks":["x"]}`, `{"chunks":[5]}`} {
		must(t, os.WriteFile(filepath.Join(p.dir(), disk.DamagedFile), []byte(text), 0o600))
		if _, err := p.repair(p.giver("peer")); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%q: %v", text, err)
		}
		if err := fetch.Check(p.dir()); err == nil {
			t.Errorf("%q passes", text)
		}
	}
}

func TestChunksOf(t *testing.T) {
	content := image(1, 9<<20+512)
	dir, _ := mustCopy(t, content)
	give := fetch.ChunksOf(dir)
	p := mustPublish(t, content)
	p.spoil(t, 1, 9<<20)
	if mended, err := p.repair(fetch.Giver{Name: "copy", Chunk: give}); err != nil || len(mended["copy"]) != 2 {
		t.Fatalf("mended %v, %v", mended, err)
	}
	p.mustBeWhole(t)
	for _, index := range []int64{0, 4, 5, 1 << 40} {
		if _, err := give(context.Background(), index, manifest.Digest{1}); !backingimage.Is(err, backingimage.NotFound) {
			t.Errorf("chunk %d: %v", index, err)
		}
	}
}

func TestScrubKeepsToItsPace(t *testing.T) {
	content := image(1, 9<<20)
	dir, _ := mustCopy(t, content)
	asked := make(chan int64, 100)
	must(t, fetch.Scrub(context.Background(), dir, fetch.ScrubOptions{Pace: func(_ context.Context, bytes int64) error { asked <- bytes; return nil }}, nil))
	close(asked)
	var bytes int64
	for n := range asked {
		bytes += n
	}
	if bytes == 0 || bytes > 9<<20 {
		t.Errorf("it asked for %d bytes", bytes)
	}
	stop := errors.New("stop")
	if err := fetch.Scrub(context.Background(), dir, fetch.ScrubOptions{Pace: func(context.Context, int64) error { return stop }}, nil); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}
