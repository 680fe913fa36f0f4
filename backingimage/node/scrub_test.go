package node_test

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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/node/nodetest"
)

// rotting is a machine on whose disks bytes change.
type rotting struct {
	*nodetest.Machine
	asked map[string]time.Time // when a verification of a copy was last asked for
}

func mustRot(t *testing.T, tune func(*node.Options), disks int) *rotting {
	t.Helper()
	disktest.NeedRoot(t)
	var all []*disk.Disk
	for range disks {
		all = append(all, disktest.MustPool(t, nodetest.PoolBytes))
	}
	m := &rotting{nodetest.MustStart(t, all...), map[string]time.Time{}}
	m.Stop()
	m.Tune = func(o *node.Options) {
		o.Heartbeat = 100 * time.Millisecond
		if tune != nil {
			tune(o)
		}
	}
	m.Start()
	return m
}

// flip flips a byte of a copy at each offset.
func (m *rotting) flip(t *testing.T, d int, i *v1alpha1.BackingImage, offsets ...int64) {
	t.Helper()
	flipped := false
	change := func(f *os.File) error {
		for _, at := range offsets {
			var b [1]byte
			_, err := f.ReadAt(b[:], at)
			b[0] ^= 1
			if err == nil {
				_, err = f.WriteAt(b[:], at)
			}
			if err != nil {
				return err
			}
		}
		flipped = true
		return f.Sync()
	}
	until(t, "the bytes are flipped", func() bool {
		err := m.Disks[d].ChangeImage(string(i.UID), change)
		if !errors.Is(err, unix.EPERM) { // the agent, which has just made the copy, may close the seal in between
			must(t, err)
		}
		return flipped
	})
}

func (m *rotting) copyName(d int, i *v1alpha1.BackingImage) string {
	return v1alpha1.CopyName(string(i.UID), m.Disks[d].UUID())
}

// verify asks for a verification, as people do.
func (m *rotting) verify(t *testing.T, d int, i *v1alpha1.BackingImage) {
	t.Helper()
	now := metav1.NewMicroTime(time.Now().Truncate(time.Microsecond))
	m.asked[m.copyName(d, i)] = now.Time
	_, err := m.Store.Copies.Modify(context.Background(), m.copyName(d, i), func(c *v1alpha1.BackingImageCopy) { c.Spec.VerifyRequestedTime = &now })
	must(t, err)
}

func (m *rotting) untilCopy(t *testing.T, d int, i *v1alpha1.BackingImage, what string, is func(*v1alpha1.BackingImageCopy) bool) *v1alpha1.BackingImageCopy {
	t.Helper()
	return untilCopy(t, m.Machine, m.copyName(d, i), what, is)
}

// untilCopy waits for a copy to be as wanted.
func untilCopy(t *testing.T, m *nodetest.Machine, name, what string, is func(*v1alpha1.BackingImageCopy) bool) *v1alpha1.BackingImageCopy {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	var last *v1alpha1.BackingImageCopy
	err := m.Store.Copies.Wait(ctx, name, func(c *v1alpha1.BackingImageCopy) (bool, error) {
		last = c
		return c != nil && is(c), nil
	})
	if err != nil {
		t.Fatalf("copy %s is not %s: %v; it is %+v", name, what, err, last)
	}
	return last
}

// untilVerified waits for the answer to a verification and for what comes of it.
func (m *rotting) untilVerified(t *testing.T, d int, i *v1alpha1.BackingImage) v1alpha1.BackingImageCopyStatus {
	t.Helper()
	return m.untilCopy(t, d, i, "verified", func(c *v1alpha1.BackingImageCopy) bool {
		answered := c.Status.VerifiedRequestTime
		return answered != nil && !answered.Time.Before(m.asked[c.Name]) && (c.Status.State == v1alpha1.CopyReady || c.Status.State == v1alpha1.CopyFailed)
	}).Status
}

// mustBeWhole checks a copy's files, and that they are as the source has them.
func (m *rotting) mustBeWhole(t *testing.T, d int, i *v1alpha1.BackingImage, content []byte) {
	t.Helper()
	got, err := os.ReadFile(m.Path(d, i))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy differs (%v)", err)
	}
	must(t, fetch.Check(filepath.Dir(m.Path(d, i))))
}

func TestVerify(t *testing.T) {
	m := mustRot(t, nil, 1)
	w := nodetest.NewWeb(t, 16<<20)
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")
	for _, c := range []struct {
		outcome string
		offsets []int64
		says    string
		served  int64
	}{
		{"a good copy stays as it is", nil, "every chunk agrees", 0},
		{"one flipped byte is repaired with one chunk of the source", []int64{100}, "repaired chunk 0 from the image's source", manifest.ChunkBytes},
		{"a byte in a hole is repaired from nothing", []int64{12 << 20}, "repaired chunk 6 from its manifest", 0},
		{"two chunks are repaired alone", []int64{3 << 20, 6<<20 + 1}, "repaired chunks 1, 3 from the image's source", 2 * manifest.ChunkBytes},
	} {
		t.Run(c.outcome, func(t *testing.T) {
			m.flip(t, 0, i, c.offsets...)
			before := w.Asked.Load()
			m.verify(t, 0, i)
			s := m.untilVerified(t, 0, i)
			if s.State != v1alpha1.CopyReady || !strings.Contains(s.VerifyResult, c.says) || s.LastVerifiedTime == nil || len(s.BadChunks) > 0 || s.Message != "" {
				t.Errorf("status is %+v", s)
			}
			if n := w.Asked.Load() - before; n != c.served/manifest.ChunkBytes {
				t.Errorf("%d requests", n)
			}
			m.mustBeWhole(t, 0, i, w.Content)
		})
	}
}

func TestCopiesAreReadAgainByThemselves(t *testing.T) {
	m := mustRot(t, func(o *node.Options) { o.ScrubInterval = 500 * time.Millisecond }, 1)
	w := nodetest.NewWeb(t, 8<<20)
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")
	m.untilCopy(t, 0, i, "read again", func(c *v1alpha1.BackingImageCopy) bool { return c.Status.LastVerifiedTime != nil })
	m.flip(t, 0, i, 1)
	m.untilCopy(t, 0, i, "repaired", func(c *v1alpha1.BackingImageCopy) bool {
		got, err := os.ReadFile(m.Path(0, i))
		return err == nil && bytes.Equal(got, w.Content) && c.Status.State == v1alpha1.CopyReady
	})
}

func TestAScrubKeepsToItsRateAndGivesWayToPeople(t *testing.T) {
	m := mustRot(t, func(o *node.Options) { o.ScrubInterval, o.ScrubRate = 500*time.Millisecond, 32<<10 }, 1)
	w := nodetest.NewWeb(t, 16<<20)
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")
	m.untilCopy(t, 0, i, "being read", func(c *v1alpha1.BackingImageCopy) bool { return strings.HasPrefix(c.Status.Message, "verifying, ") })
	time.Sleep(time.Second) // 8 MiB at 32 KiB/s take minutes
	if c, _ := m.Store.Copies.Get(m.copyName(0, i)); c.Status.LastVerifiedTime != nil || c.Status.State != v1alpha1.CopyReady {
		t.Errorf("status is %+v", c.Status)
	}
	m.verify(t, 0, i) // who asks does not wait for one who did not
	m.untilVerified(t, 0, i)
	must(t, m.Store.Images.Delete(context.Background(), "image"))
	m.UntilGone("image")
	m.UntilNoFiles(i)
}

func TestAScrubPausesWhileSomethingIsFetchedToTheDisk(t *testing.T) {
	m := mustRot(t, func(o *node.Options) { o.ScrubInterval = 500 * time.Millisecond }, 1)
	slow, w := nodetest.NewWeb(t, 8<<20), nodetest.NewWeb(t, 8<<20)
	slow.Hold = make(chan struct{})
	m.CreateImage("slow", slow.URL, "", 1)
	m.UntilState("slow", v1alpha1.CopyInProgress)
	m.CreateImage("image", w.URL, "", 1)
	i := m.UntilReady("image", "1/1")
	m.untilCopy(t, 0, i, "about to be read", func(c *v1alpha1.BackingImageCopy) bool { return strings.HasPrefix(c.Status.Message, "verifying, ") })
	time.Sleep(time.Second)
	if c, _ := m.Store.Copies.Get(m.copyName(0, i)); c.Status.LastVerifiedTime != nil {
		t.Error("it was read during the fetch")
	}
	close(slow.Hold)
	m.untilCopy(t, 0, i, "read", func(c *v1alpha1.BackingImageCopy) bool { return c.Status.LastVerifiedTime != nil })
}

func TestACopyWhoseFilesAreLostIsMadeAnew(t *testing.T) {
	m := mustRot(t, nil, 1)
	w, beside := nodetest.NewWeb(t, 8<<20), nodetest.NewWeb(t, 4<<20)
	m.CreateImage("image", w.URL, "", 1)
	m.CreateImage("other", beside.URL, "", 1)
	i, other := m.UntilReady("image", "1/1"), m.UntilReady("other", "1/1")
	dir := filepath.Dir(m.Path(0, i))
	for name, lose := range map[string]func() error{
		"the directory":          func() error { return os.RemoveAll(dir) },
		"the content":            func() error { return os.Remove(filepath.Join(dir, disk.ImageFile)) },
		"the manifest":           func() error { return os.Remove(filepath.Join(dir, disk.ManifestFile)) },
		"the record":             func() error { return os.Remove(filepath.Join(dir, disk.CopyFile)) },
		"the end of the content": func() error { return os.Truncate(filepath.Join(dir, disk.ImageFile), 1<<20) },
		"the manifest's bytes":   func() error { return os.Truncate(filepath.Join(dir, disk.ManifestFile), 0) },
		"a mark that is legible": func() error { return os.WriteFile(filepath.Join(dir, disk.DamagedFile), []byte("?"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			served := w.Served.Load()
			disktest.MustUnseal(t, m.Disks[0], string(i.UID))
			must(t, lose())
			m.untilCopy(t, 0, i, "made anew", func(c *v1alpha1.BackingImageCopy) bool {
				return c.Status.State == v1alpha1.CopyReady && w.Served.Load() > served && fetch.Check(dir) == nil
			})
			m.mustBeWhole(t, 0, i, w.Content)
			if n := beside.Served.Load(); n != 4<<20 {
				t.Errorf("the other image was fetched again: %d bytes", n)
			}
			m.mustBeWhole(t, 0, other, beside.Content)
		})
	}
}
