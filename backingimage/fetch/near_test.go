package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/fetch"
)

// nearJob makes an image of something near in a new directory.
func nearJob(dir string) fetch.NearJob {
	return fetch.NearJob{Dir: filepath.Join(dir, "image-near"), Image: "near", ImageUID: "uid-near", Source: "image golden", Resolved: "image golden with UID 1"}
}

// mustCopyIn makes a finished copy of content in a directory.
func mustCopyIn(tb testing.TB, dir string, content []byte) string {
	tb.Helper()
	j := job(tb, mustServe(tb, &server{content: content}))
	j.Dir = dir
	if _, err := fetch.Run(context.Background(), j, nil); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func TestCloneIsTheSameContentUnderAnotherName(t *testing.T) {
	content := image(1, 9<<20+512)
	from, source := mustCopy(t, content)
	for name, dir := range map[string]string{
		"beside it":                    filepath.Dir(from),
		"on a disk that shares":        disktest.MustFilesystem(t, "xfs", 320<<20),
		"on a disk that cannot share":  mustMount(t, "-t", "tmpfs", "tmpfs"),
		"on one that shares otherwise": disktest.MustFilesystem(t, "btrfs", 320<<20),
	} {
		t.Run(name, func(t *testing.T) {
			job := nearJob(dir)
			for range 2 { // the second finds it made
				got, err := fetch.Clone(context.Background(), from, job, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got.ContentDigest != source.ContentDigest || got.Checksum != source.Checksum || got.Format != source.Format || got.SourceBytes != source.SourceBytes || got.Resolved != job.Resolved {
					t.Errorf("got %+v, its source is %+v", got, source)
				}
				mustEqual(t, job.Dir, content, got)
			}
			record, err := fetch.Load(job.Dir)
			if err != nil || record.Image != "near" || record.ImageUID != "uid-near" || record.Source != "image golden" {
				t.Errorf("record %+v, %v", record, err)
			}
			if err := fetch.Verify(context.Background(), job.Dir, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCloneOnOneDiskReadsAndWritesNothing(t *testing.T) {
	dir := disktest.MustFilesystem(t, "xfs", 320<<20)
	from := mustCopyIn(t, filepath.Join(dir, "from"), image(1, 64<<20))
	before := free(t, dir)
	if _, err := fetch.Clone(context.Background(), from, nearJob(dir), nil); err != nil {
		t.Fatal(err)
	}
	if used := before - free(t, dir); used > 4<<20 {
		t.Errorf("a clone of 64 MiB takes %d bytes", used)
	}
}

func TestCloneChecksums(t *testing.T) {
	content := image(1, 3<<20)
	from, _ := mustCopy(t, content)
	qcow2 := mustQCOW2(t, content)
	j := job(t, mustServe(t, &server{content: qcow2}))
	if _, err := fetch.Run(context.Background(), j, nil); err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("0", 64)
	for name, tc := range map[string]struct {
		from, checksum string
		kind           backingimage.Kind // Internal: it succeeds
		says           []string
	}{
		"the recorded one":                  {from: from, checksum: sha512Hex(content)},
		"another, of a raw image":           {from: from, checksum: sha256Hex(content)},
		"a wrong one names both":            {from: from, checksum: other + other, kind: backingimage.Corrupt, says: []string{other + other, sha512Hex(content), "image golden"}},
		"a wrong one of the other kind":     {from: from, checksum: other, kind: backingimage.Corrupt, says: []string{other, sha256Hex(content)}},
		"the recorded one of a qcow2 file":  {from: j.Dir, checksum: sha512Hex(qcow2)},
		"one that cannot be compared":       {from: j.Dir, checksum: sha256Hex(qcow2), kind: backingimage.Unsupported, says: []string{sha512Hex(qcow2)}},
		"the content's, which is no file's": {from: j.Dir, checksum: sha512Hex(content), kind: backingimage.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			job := nearJob(t.TempDir())
			job.Checksum = tc.checksum
			_, err := fetch.Clone(context.Background(), tc.from, job, nil)
			if tc.kind == backingimage.Internal {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !backingimage.Is(err, tc.kind) {
				t.Fatalf("got %v, want %s", err, tc.kind)
			}
			for _, s := range tc.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not in: %v", s, err)
				}
			}
			mustBeGone(t, job.Dir)
		})
	}
}

func TestCloneOfACopyThatIsGoneOrDamagedWaits(t *testing.T) {
	from, _ := mustCopy(t, image(1, 3<<20))
	if _, err := fetch.Clone(context.Background(), filepath.Join(from, "nowhere"), nearJob(t.TempDir()), nil); !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("gone: %v", err)
	}
	if err := os.Truncate(filepath.Join(from, disk.ImageFile), 5); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch.Clone(context.Background(), from, nearJob(t.TempDir()), nil); !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("damaged: %v", err)
	}
}

// taking makes a file of content as an engine does, and counts how often.
func taking(content []byte, times *int) func(context.Context, string) error {
	return func(_ context.Context, to string) error {
		*times++
		if err := os.WriteFile(to, nil, 0o600); err != nil {
			return err
		}
		return sparse(to, content)
	}
}

func TestExportIsTheContentWithItsDigests(t *testing.T) {
	content := image(2, 20<<20+1536)
	_, same := mustCopy(t, content)
	for name, tc := range map[string]struct{ checksum, want string }{
		"without a checksum none is computed": {},
		"a right SHA-512 is recorded":         {sha512Hex(content), sha512Hex(content)},
		"a right SHA-256 is accepted":         {sha256Hex(content), sha512Hex(content)},
	} {
		t.Run(name, func(t *testing.T) {
			job, times := nearJob(t.TempDir()), 0
			job.Checksum = tc.checksum
			for range 2 { // the second finds it made
				got, err := fetch.Export(context.Background(), job, taking(content, &times), nil)
				if err != nil {
					t.Fatal(err)
				}
				if got.ContentDigest != same.ContentDigest || got.Checksum != tc.want || got.Format != "raw" || got.VirtualBytes != int64(len(content)) {
					t.Errorf("got %+v", got)
				}
				mustEqual(t, job.Dir, content, got)
			}
			if times != 1 {
				t.Errorf("the point in time was taken %d times", times)
			}
		})
	}
}

func TestExportRefused(t *testing.T) {
	content, times := image(2, 3<<20), 0
	job := nearJob(t.TempDir())
	job.Checksum = strings.Repeat("0", 64)
	_, err := fetch.Export(context.Background(), job, taking(content, &times), nil)
	if !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), job.Checksum) || !strings.Contains(err.Error(), sha256Hex(content)) {
		t.Errorf("a wrong checksum: %v", err)
	}
	mustBeGone(t, job.Dir)
	job = nearJob(t.TempDir())
	job.ContentDigest = strings.Repeat("a", 64)
	if _, err := fetch.Export(context.Background(), job, taking(content, &times), nil); !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), "something else") {
		t.Errorf("another content: %v", err)
	}
	job = nearJob(t.TempDir())
	none := backingimage.Errorf(backingimage.NotFound, "there is no volume v")
	if _, err := fetch.Export(context.Background(), job, func(context.Context, string) error { return none }, nil); !errors.Is(err, none) {
		t.Errorf("no volume: %v", err)
	}
	mustBeGone(t, job.Dir)
}

// TestExportThatIsKilledGoesOnWithItsPointInTime ends Export with its context at several points, as a kill would.
func TestExportThatIsKilledGoesOnWithItsPointInTime(t *testing.T) {
	content := image(2, 16<<20)
	job, times := nearJob(t.TempDir()), 0
	failing := errors.New("killed while taking")
	if _, err := fetch.Export(context.Background(), job, func(ctx context.Context, to string) error {
		return errors.Join(os.WriteFile(to, content[:1<<20], 0o600), failing)
	}, nil); !errors.Is(err, failing) {
		t.Fatal(err)
	}
	if fetch.Taken(job.Dir) {
		t.Fatal("half a file counts as taken")
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := fetch.Export(ctx, job, func(ctx context.Context, to string) error {
		defer cancel()
		return taking(content, &times)(ctx, to)
	}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if !fetch.Taken(job.Dir) {
		t.Fatal("the point in time is lost")
	}
	if _, err := fetch.Load(job.Dir); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("half an export is a copy: %v", err)
	}
	got, err := fetch.Export(context.Background(), job, taking(bytes.Repeat([]byte("x"), 16<<20), &times), nil)
	if err != nil || times != 1 {
		t.Fatalf("taken %d times; %v", times, err)
	}
	mustEqual(t, job.Dir, content, got)
}

func TestOnlyWhatIsAllocatedIsRead(t *testing.T) {
	job := nearJob(t.TempDir())
	const bytes = 1 << 40
	got, err := fetch.Export(context.Background(), job, func(_ context.Context, to string) error {
		return errors.Join(os.WriteFile(to, []byte("head"), 0o600), os.Truncate(to, bytes))
	}, nil)
	if err != nil || got.VirtualBytes != bytes || got.RealBytes > 1<<20 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// sparse writes content into a file and leaves its zeros out.
func sparse(path string, content []byte) error {
	const block = 64 << 10
	for at := 0; at < len(content); at += block {
		part := content[at:min(at+block, len(content))]
		if bytes.Equal(part, make([]byte, len(part))) {
			continue
		}
		if err := overwrite(path, int64(at), part); err != nil {
			return err
		}
	}
	return os.Truncate(path, int64(len(content)))
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	unix.Sync()
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}
