package loop_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/disk/loop"
)

const mib = 1 << 20

// mustFile makes a sparse file whose device, if it gets one, goes with the test.
func mustFile(tb testing.TB, dir string, bytes int64) string {
	tb.Helper()
	disktest.NeedRoot(tb)
	path := filepath.Join(dir, "content")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, bytes)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := loop.Detach(context.Background(), path); err != nil {
			tb.Error(err)
		}
	})
	return path
}

func mustAttach(tb testing.TB, path string, o loop.Options) loop.Device {
	tb.Helper()
	device, err := loop.Attach(context.Background(), path, o)
	if err != nil {
		tb.Fatal(err)
	}
	d, found, err := loop.Find(path)
	if err != nil || !found || d.Path != device {
		tb.Fatalf("Attach made %s, Find says %+v, %t, %v", device, d, found, err)
	}
	return d
}

func wantKind(tb testing.TB, want backingimage.Kind, err error) {
	tb.Helper()
	if !backingimage.Is(err, want) {
		tb.Fatalf("got %v, want a %s error", err, want)
	}
}

func TestAttach(t *testing.T) {
	path := mustFile(t, t.TempDir(), 4*mib)
	if _, found, err := loop.Find(path); found || err != nil {
		t.Fatalf("a new file has a device (%v)", err)
	}
	first := mustAttach(t, path, loop.Options{})
	if !first.DirectIO || first.ReadOnly || first.SectorBytes != 512 || first.Bytes != 4*mib {
		t.Errorf("got %+v, want a writable device of 4 MiB with direct I/O and sectors of 512 bytes", first)
	}
	t.Run("a second attach returns the first's device", func(t *testing.T) {
		if second := mustAttach(t, path, loop.Options{}); second != first {
			t.Errorf("got %+v, want %+v", second, first)
		}
	})
	t.Run("another name of the file is the same file", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(path, link); err != nil {
			t.Fatal(err)
		}
		if second := mustAttach(t, link, loop.Options{}); second.Path != first.Path {
			t.Errorf("got %s, want %s", second.Path, first.Path)
		}
	})
	t.Run("discard gives the file's blocks back", func(t *testing.T) { testDiscard(t, path, first.Path) })
	t.Run("the device grows with its file", func(t *testing.T) {
		if err := errors.Join(os.Truncate(path, 6*mib), loop.Refresh(path)); err != nil {
			t.Fatal(err)
		}
		if d := mustAttach(t, path, loop.Options{}); d.Bytes != 6*mib {
			t.Errorf("got %d bytes after Refresh, want %d", d.Bytes, 6*mib)
		}
		if err := os.Truncate(path, 8*mib); err != nil { // and killed before Refresh
			t.Fatal(err)
		}
		if d := mustAttach(t, path, loop.Options{}); d.Bytes != 8*mib {
			t.Errorf("got %d bytes after Attach, want %d", d.Bytes, 8*mib)
		}
	})
	t.Run("bad input is refused", func(t *testing.T) {
		_, err := loop.Attach(context.Background(), path, loop.Options{SectorBytes: 520})
		wantKind(t, backingimage.Invalid, err)
		_, err = loop.Attach(context.Background(), path+"x", loop.Options{})
		wantKind(t, backingimage.NotFound, err)
		odd := mustFile(t, t.TempDir(), mib+512)
		_, err = loop.Attach(context.Background(), odd, loop.Options{SectorBytes: 4096})
		wantKind(t, backingimage.Invalid, err)
	})
}

func testDiscard(t *testing.T, path, device string) {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte{1}, mib)); err != nil {
		t.Fatal(err)
	}
	f.Sync()
	before := allocated(t, path)
	if _, err := command.Run(context.Background(), "blkdiscard", "-f", device); err != nil {
		t.Fatal(err)
	}
	if after := allocated(t, path); before < mib || after != 0 {
		t.Errorf("the file has %d bytes allocated before and %d after the discard", before, after)
	}
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestAttachAtOnceMakesOneDevice(t *testing.T) {
	path := mustFile(t, t.TempDir(), mib)
	devices := make([]string, 16)
	var all sync.WaitGroup
	for i := range devices {
		all.Go(func() {
			var err error
			if devices[i], err = loop.Attach(context.Background(), path, loop.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, d := range devices {
		if d != devices[0] {
			t.Fatalf("got %v", devices)
		}
	}
}

func TestAttachTakesTheNextDeviceWhenAnotherProcessIsFaster(t *testing.T) {
	path, other := mustFile(t, t.TempDir(), mib), mustFile(t, t.TempDir(), mib)
	lost := false
	loop.ReplaceConfigure(t, func(real func(int, *unix.LoopConfig) error, fd int, c *unix.LoopConfig) error {
		if lost {
			return real(fd, c)
		}
		f, err := os.Open(other)
		if err != nil {
			return err
		}
		defer f.Close()
		thief := *c // takes the device between our asking and our binding
		thief.Fd = uint32(f.Fd())
		if err := real(fd, &thief); err != nil {
			return err
		}
		lost = true
		return real(fd, c)
	})
	d := mustAttach(t, path, loop.Options{})
	taken, found, err := loop.Find(other)
	if err != nil || !found || taken.Path == d.Path {
		t.Errorf("the file has %s, the other %+v (%v)", d.Path, taken, err)
	}
}

func TestAttachMakesMissingNodes(t *testing.T) {
	path, dev := mustFile(t, t.TempDir(), mib), t.TempDir()
	loop.ReplaceDevices(t, dev)
	d := mustAttach(t, path, loop.Options{})
	if filepath.Dir(d.Path) != dev {
		t.Fatalf("got %s, want a node in %s", d.Path, dev)
	}
	content, err := os.ReadFile(d.Path)
	if err != nil || len(content) != mib {
		t.Errorf("read %d bytes, %v", len(content), err)
	}
	if err := loop.Detach(context.Background(), path); err != nil {
		t.Error(err)
	}
}

// A filesystem with sectors of 4096 bytes cannot do direct I/O in units of 512.
func TestAttachFallsBackToBufferedIO(t *testing.T) {
	outer := mustFile(t, t.TempDir(), 512*mib)
	device := mustAttach(t, outer, loop.Options{SectorBytes: 4096})
	mount := t.TempDir()
	if _, err := command.Run(context.Background(), "mkfs.xfs", "-q", "-s", "size=4096", device.Path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(device.Path, mount, "xfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	for sector, direct := range map[int]bool{512: false, 4096: true} {
		t.Run(fmt.Sprintf("sectors of %d bytes: direct I/O %t", sector, direct), func(t *testing.T) {
			dir, err := os.MkdirTemp(mount, "")
			if err != nil {
				t.Fatal(err)
			}
			logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
			path := mustFile(t, dir, mib)
			if _, err := loop.Attach(klog.NewContext(context.Background(), logger), path, loop.Options{SectorBytes: sector}); err != nil {
				t.Fatal(err)
			}
			if d := mustAttach(t, path, loop.Options{SectorBytes: sector}); d.DirectIO != direct {
				t.Errorf("got direct I/O %t", d.DirectIO)
			}
			said := strings.Count(logger.GetSink().(ktesting.Underlier).GetBuffer().String(), "buffered")
			if (said == 1) == direct {
				t.Errorf("said %d times that it is buffered", said)
			}
		})
	}
}

func TestThatADeviceWasReadOnlyDoesNotOutliveWhatItWas(t *testing.T) {
	path := mustFile(t, t.TempDir(), mib)
	readOnly := func(device string, change bool) bool {
		t.Helper()
		fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		if change {
			must(t, unix.IoctlSetPointerInt(fd, unix.BLKROSET, 1))
		}
		is, err := unix.IoctlGetInt(fd, unix.BLKROGET)
		must(t, err)
		return is != 0
	}
	d := mustAttach(t, path, loop.Options{})
	if !readOnly(d.Path, true) {
		t.Fatal("the device cannot be made read-only")
	}
	must(t, d.Detach(context.Background()))
	if readOnly(d.Path, false) {
		t.Error("a device that was detached is read-only for whoever gets it next")
	}
	loop.ReplaceConfigure(t, func(real func(int, *unix.LoopConfig) error, fd int, c *unix.LoopConfig) error {
		return errors.Join(unix.IoctlSetPointerInt(fd, unix.BLKROSET, 1), real(fd, c)) // as another program leaves it
	})
	if readOnly(mustAttach(t, path, loop.Options{}).Path, false) {
		t.Error("a device is read-only because it was when it was another's")
	}
	must(t, loop.Detach(context.Background(), path))
	if !readOnly(mustAttach(t, path, loop.Options{ReadOnly: true}).Path, false) {
		t.Error("a device that was attached read-only is writable")
	}
}

func TestDetach(t *testing.T) {
	ctx := context.Background()
	t.Run("what is not attached, or not there, is success", func(t *testing.T) {
		path := mustFile(t, t.TempDir(), mib)
		if err := errors.Join(loop.Detach(ctx, path), loop.Detach(ctx, path+"x")); err != nil {
			t.Error(err)
		}
	})
	t.Run("an open device is InUse, names the process, and stays when it is closed", func(t *testing.T) {
		path := mustFile(t, t.TempDir(), mib)
		d := mustAttach(t, path, loop.Options{})
		held, err := os.Open(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		err = loop.Detach(ctx, path)
		held.Close()
		wantKind(t, backingimage.InUse, err)
		if !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
			t.Errorf("the message does not name this process: %v", err)
		}
		if now, found, err := loop.Find(path); !found || now != d {
			t.Errorf("the device is now %+v (%v), it was %+v", now, err, d)
		}
	})
	t.Run("an opener that goes by itself is waited for", func(t *testing.T) {
		path := mustFile(t, t.TempDir(), mib)
		held, err := os.Open(mustAttach(t, path, loop.Options{}).Path)
		if err != nil {
			t.Fatal(err)
		}
		begun := make(chan struct{})
		go func() { <-begun; held.Close() }()
		close(begun)
		if err := loop.Detach(ctx, path); err != nil {
			t.Error(err)
		}
	})
	t.Run("a mounted device is InUse and names the mount", func(t *testing.T) {
		mount := disktest.MustFilesystem(t, "ext4", 8*mib)
		d, _, err := loop.Find(mount + ".img")
		if err != nil {
			t.Fatal(err)
		}
		err = d.Detach(ctx)
		wantKind(t, backingimage.InUse, err)
		if !strings.Contains(err.Error(), mount) {
			t.Errorf("the message does not name %s: %v", mount, err)
		}
	})
	t.Run("a context that ends ends the wait", func(t *testing.T) {
		path := mustFile(t, t.TempDir(), mib)
		held, err := os.Open(mustAttach(t, path, loop.Options{}).Path)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if err := loop.Detach(ended, path); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// The kernel marks a busy device that it is told to clear, and removes it later; a Detach killed at that point leaves the mark.
func TestAttachTakesBackAKilledDetach(t *testing.T) {
	path := mustFile(t, t.TempDir(), mib)
	d := mustAttach(t, path, loop.Options{})
	user, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	killed, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(killed.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		t.Fatal(err)
	}
	killed.Close()
	if again := mustAttach(t, path, loop.Options{}); again.Path != d.Path {
		t.Fatalf("got %s, want %s", again.Path, d.Path)
	}
	user.Close()
	if _, found, err := loop.Find(path); !found {
		t.Errorf("the device vanished after its last user closed it (%v)", err)
	}
}

func TestDetachLeavesADeviceAloneThatHasAnotherFileNow(t *testing.T) {
	ctx := context.Background()
	old, other := mustFile(t, t.TempDir(), mib), mustFile(t, t.TempDir(), mib)
	d := mustAttach(t, old, loop.Options{})
	if err := loop.Detach(ctx, old); err != nil {
		t.Fatal(err)
	}
	stale := mustAttach(t, other, loop.Options{})
	stale.BackingInode = d.BackingInode
	if err := stale.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	if _, found, err := loop.Find(other); !found {
		t.Errorf("the other file lost its device (%v)", err)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
