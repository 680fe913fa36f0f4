package mount_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/csi/mount/mounttest"
)

func equal[T any](tb testing.TB, got, want T) {
	tb.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Fatalf("not as wanted (-want +got):\n%s", diff)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// mustStage formats a new device and mounts it.
func mustStage(t *testing.T, fsType string, options ...string) (mount.Device, string) {
	t.Helper()
	device, _ := mounttest.Loop(t, 400*mib)
	dir := mounttest.Directory(t)
	d := mustInspect(t, device)
	must(t, mount.Format(t.Context(), d, fsType, ""))
	must(t, mount.Filesystem(t.Context(), d, dir, fsType, options))
	return d, dir
}

func TestFilesystemIsSeenInTheTableOfMounts(t *testing.T) {
	for _, fsType := range []string{mount.Ext4, mount.XFS} {
		t.Run(fsType, func(t *testing.T) {
			d, dir := mustStage(t, fsType)
			points, err := mount.At(dir)
			must(t, err)
			if len(points) != 1 || !points[0].Shows(d) || points[0].Type != fsType || points[0].ReadOnly {
				t.Fatalf("At = %+v", points)
			}
			must(t, mount.Unmount(dir))
			must(t, mount.Unmount(dir))
			points, err = mount.At(dir)
			must(t, err)
			equal(t, len(points), 0)
		})
	}
}

func TestClonesOfOneXFSMountBesideEachOther(t *testing.T) {
	device, file := mounttest.Loop(t, 400*mib)
	mounttest.MustRun(t, "mkfs.xfs", "-q", device)
	clone, cloneFile := mounttest.Loop(t, 400*mib)
	mounttest.MustRun(t, "dd", "if="+file, "of="+cloneFile, "bs=1M", "conv=sparse,notrunc,fsync", "status=none")
	for _, path := range []string{device, clone} {
		must(t, mount.Filesystem(t.Context(), mustInspect(t, path), mounttest.Directory(t), mount.XFS, nil))
	}
}

func TestReadOnlyFilesystemOnAReadOnlyDevice(t *testing.T) {
	for _, fsType := range []string{mount.Ext4, mount.XFS} {
		t.Run(fsType, func(t *testing.T) {
			d, dir := mustStage(t, fsType)
			must(t, os.WriteFile(dir+"/f", []byte("data"), 0o600))
			must(t, mount.Unmount(dir))
			must(t, mount.SetReadOnly(d.Path, true))
			t.Cleanup(func() { must(t, mount.SetReadOnly(d.Path, false)) })
			must(t, mount.Filesystem(t.Context(), mustInspect(t, d.Path), dir, fsType, []string{"ro"}))
			if _, err := os.ReadFile(dir + "/f"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir+"/g", nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Fatalf("write = %v, want EROFS", err)
			}
		})
	}
}

func TestMountThatFailsSaysWhat(t *testing.T) {
	device, _ := mounttest.Loop(t, 4*mib)
	err := mount.Filesystem(t.Context(), mustInspect(t, device), mounttest.Directory(t), mount.Ext4, nil)
	if err == nil {
		t.Fatal("a blank device was mounted")
	}
	t.Log(err)
}

func TestBind(t *testing.T) {
	_, dir := mustStage(t, mount.Ext4)
	must(t, os.WriteFile(dir+"/f", []byte("data"), 0o600))

	t.Run("a writable one is writable", func(t *testing.T) {
		target := mounttest.Directory(t)
		must(t, mount.Bind(dir, target, false))
		must(t, os.WriteFile(target+"/g", nil, 0o600))
	})
	t.Run("a read-only one is not, while its source stays writable", func(t *testing.T) {
		target := mounttest.Directory(t)
		must(t, mount.Bind(dir, target, true))
		if err := os.WriteFile(target+"/h", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Fatalf("write = %v, want EROFS", err)
		}
		points, err := mount.At(target)
		must(t, err)
		equal(t, points[0].ReadOnly, true)
		must(t, os.WriteFile(dir+"/h", nil, 0o600))
	})
	t.Run("stacked ones are all taken away", func(t *testing.T) {
		target := mounttest.Directory(t)
		for range 3 {
			must(t, mount.Bind(dir, target, false))
		}
		must(t, mount.Unmount(target))
		entries, err := os.ReadDir(target)
		must(t, err)
		equal(t, len(entries), 0)
	})
	t.Run("a missing source fails", func(t *testing.T) {
		if err := mount.Bind(dir+"/missing", mounttest.Directory(t), false); !errors.Is(err, unix.ENOENT) {
			t.Fatalf("got %v, want ENOENT", err)
		}
	})
}

func TestDeviceNodeBoundOntoAFileIsShowing(t *testing.T) {
	device, _ := mounttest.Loop(t, 4*mib)
	target := filepath.Join(t.TempDir(), "with blank\\and backslash")
	mounttest.MustTruncate(t, target, 0)
	t.Cleanup(func() { mounttest.UnmountAll(target) })
	must(t, mount.Bind(device, target, false))
	points, err := mount.Showing(mustInspect(t, device))
	must(t, err)
	if len(points) != 1 || points[0].Path != target {
		t.Fatalf("Showing = %+v, want %s", points, target)
	}
	equal(t, mustInspect(t, target).ID, mustInspect(t, device).ID)
}

func TestUnmountWhileAFileIsOpenIsInUse(t *testing.T) {
	_, dir := mustStage(t, mount.Ext4)
	f, err := os.Create(dir + "/f")
	must(t, err)
	if err := mount.Unmount(dir); !backingimage.Is(err, backingimage.InUse) {
		t.Errorf("got %v, want InUse", err)
	}
	must(t, f.Close())
}

func TestUnmountOfWhatIsNotThereSucceeds(t *testing.T) {
	must(t, mount.Unmount(t.TempDir()))
	must(t, mount.Unmount(t.TempDir()+"/a/b/c"))
}

func TestMountBehindASymbolicLinkIsFound(t *testing.T) {
	_, dir := mustStage(t, mount.Ext4)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(filepath.Dir(dir), link))
	points, err := mount.At(filepath.Join(link, filepath.Base(dir)))
	must(t, err)
	equal(t, len(points), 1)
}

func TestClaimable(t *testing.T) {
	d, dir := mustStage(t, mount.Ext4)
	if err := mount.Claimable(d.Path); !backingimage.Is(err, backingimage.InUse) {
		t.Errorf("mounted: got %v, want InUse", err)
	}
	must(t, mount.Unmount(dir))
	must(t, mount.Claimable(d.Path))
}

func TestUsage(t *testing.T) {
	_, dir := mustStage(t, mount.Ext4)
	before, _, err := mount.UsageOf(dir)
	must(t, err)
	must(t, os.WriteFile(dir+"/f", make([]byte, mib), 0o600))
	mounttest.MustRun(t, "sync", "-f", dir)
	bytes, inodes, err := mount.UsageOf(dir)
	must(t, err)
	if got := bytes.Used - before.Used; got < mib || got > 2*mib {
		t.Errorf("used grew by %d bytes, want about 1 MiB", got)
	}
	if bytes.Total < 300*mib || bytes.Used+bytes.Available > bytes.Total || inodes.Used < 11 || inodes.Total <= inodes.Used {
		t.Errorf("usage = %+v, inodes %+v", bytes, inodes)
	}
}
