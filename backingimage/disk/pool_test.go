package disk_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/disk/mountinfo"
)

func TestPoolIsOneMountOnADirectDevice(t *testing.T) {
	d := disktest.MustPool(t, disktest.PoolBytes)
	if !d.Pool() || d.Filesystem() != "xfs" || string(d.Layout()) != filepath.Join(d.Path(), "pool") {
		t.Fatalf("pool %t, filesystem %s, layout %s", d.Pool(), d.Filesystem(), d.Layout())
	}
	device, found, err := loop.Find(filepath.Join(d.Path(), "pool.xfs"))
	if err != nil || !found || !device.DirectIO {
		t.Fatalf("the pool's device is %+v, %v", device, err)
	}
	mounts, err := mountinfo.Of(device.Path)
	if err != nil || len(mounts) != 1 || mounts[0].Point != string(d.Layout()) {
		t.Errorf("the pool's mounts are %v, %v", mounts, err)
	}
}

// What a killed Open leaves, one step further each time.
func TestPoolIsMadeOnce(t *testing.T) {
	disktest.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "with space")
	must(t, os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "pool.xfs.new"), []byte("half"), 0o600))
	uuid := open(t, dir)
	file, mount := filepath.Join(dir, "pool.xfs"), filepath.Join(dir, "pool")
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	check := func(state string) {
		t.Helper()
		if again := open(t, dir); again != uuid {
			t.Errorf("%s: the disk became %s, it was %s", state, again, uuid)
		}
	}
	check("made, not attached")
	_, err := loop.Attach(context.Background(), file, loop.Options{})
	must(t, err)
	check("attached, not mounted")
	device, err := loop.Attach(context.Background(), file, loop.Options{})
	must(t, err, unix.Mount(device, mount, "xfs", 0, ""))
	check("mounted")
	disktest.MustOpen(t, dir, disktest.PoolBytes)
}

func TestPoolInUseStaysMountedAndIsAdopted(t *testing.T) {
	ctx := context.Background()
	d := disktest.MustPool(t, disktest.PoolBytes)
	file := filepath.Join(string(d.Layout()), "content")
	must(t, os.WriteFile(file, make([]byte, 1<<20), 0o600))
	device, err := loop.Attach(ctx, file, loop.Options{})
	must(t, err, d.Close(ctx))
	if _, err := os.ReadFile(device); err != nil {
		t.Errorf("after Close the attached file cannot be read: %v", err)
	}
	again := disktest.MustOpen(t, d.Path(), disktest.PoolBytes)
	if again.UUID() != d.UUID() {
		t.Errorf("the disk became %s, it was %s", again.UUID(), d.UUID())
	}
	if now, found, err := loop.Find(file); !found || now.Path != device {
		t.Errorf("the attached file's device is %+v (%v), it was %s", now, err, device)
	}
}

func TestPoolGrows(t *testing.T) {
	ctx := context.Background()
	disktest.NeedRoot(t)
	dir := t.TempDir()
	size := func(bytes int64) int64 {
		t.Helper()
		d, err := disk.Open(ctx, dir, disk.Options{PoolBytes: bytes})
		must(t, err)
		defer d.Close(ctx)
		total, _, err := d.Capacity()
		must(t, err)
		return total
	}
	small := size(512 << 20)
	large := size(1 << 30)
	if large-small < 500<<20 {
		t.Errorf("grown from %d to %d bytes", small, large)
	}
	if now := size(512 << 20); now != large {
		t.Errorf("asked to shrink it has %d bytes, it had %d", now, large)
	}
	must(t, os.Truncate(filepath.Join(dir, "pool.xfs"), 2<<30)) // and killed before the filesystem grew
	if now := size(0); now-large < 1000<<20 {
		t.Errorf("a grow that was killed was not finished: %d bytes", now)
	}
	d := disktest.MustOpen(t, dir, 2<<30)
	hold, err := os.Create(filepath.Join(string(d.Layout()), "open"))
	must(t, err)
	defer hold.Close()
	must(t, d.Close(ctx)) // stays mounted
	if now := size(3 << 30); now < 2900<<20 {
		t.Errorf("a mounted pool did not grow: %d bytes", now)
	}
	hold.Close()
	disktest.MustOpen(t, dir, 0)
}

func TestPoolRefusesToBuildOnSomethingElse(t *testing.T) {
	ctx := context.Background()
	disktest.NeedRoot(t)
	openPool := func(dir string) error {
		d, err := disk.Open(ctx, dir, disk.Options{PoolBytes: disktest.PoolBytes})
		if err == nil {
			t.Error("the disk was opened")
			d.Close(ctx)
		}
		return err
	}
	t.Run("a pool file that is no filesystem is Corrupt", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "pool.xfs"), make([]byte, 1<<20), 0o600))
		wantKind(t, backingimage.Corrupt, openPool(dir))
	})
	t.Run("a mount point with files is Precondition", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "pool", "images"), 0o700))
		wantKind(t, backingimage.Precondition, openPool(dir))
	})
	t.Run("another mount there is Precondition and stays", func(t *testing.T) {
		dir := t.TempDir()
		open(t, dir)
		mount := filepath.Join(dir, "pool")
		must(t, unix.Mount("none", mount, "tmpfs", 0, ""))
		defer unix.Unmount(mount, 0)
		wantKind(t, backingimage.Precondition, openPool(dir))
		if m, mounted, err := mountinfo.At(mount); !mounted || m.Type != "tmpfs" {
			t.Errorf("now %+v is mounted there (%v)", m, err)
		}
		if d, found, err := loop.Find(filepath.Join(dir, "pool.xfs")); found || err != nil {
			t.Errorf("left behind: %+v (%v)", d, err)
		}
	})
	t.Run("a pool file that was deleted under its mount is Precondition", func(t *testing.T) {
		d := disktest.MustPool(t, disktest.PoolBytes)
		file := filepath.Join(d.Path(), "pool.xfs")
		hold, err := os.Create(filepath.Join(string(d.Layout()), "open"))
		must(t, err, d.Close(ctx), os.Rename(file, file+".away"))
		wantKind(t, backingimage.Precondition, openPool(d.Path()))
		must(t, os.Rename(file+".away", file), hold.Close())
		disktest.MustOpen(t, d.Path(), 0)
	})
}

func TestPoolHealthyNoticesThatItIsUnmounted(t *testing.T) {
	d := disktest.MustPool(t, disktest.PoolBytes)
	must(t, d.Healthy(), unix.Unmount(string(d.Layout()), 0))
	err := d.Healthy()
	wantKind(t, backingimage.Precondition, err)
	if !strings.Contains(err.Error(), d.Path()) {
		t.Errorf("the message does not name the disk: %v", err)
	}
}

func TestPoolCapacityIsBoundedByWhatIsBelow(t *testing.T) {
	below := disktest.MustFilesystem(t, "ext4", 300<<20)
	d := disktest.MustOpen(t, below, 8<<30)
	total, available, err := d.Capacity()
	if err != nil || total < 7<<30 || available > 300<<20 || available <= 0 {
		t.Errorf("a pool of 8 GiB on 300 MiB has %d bytes, %d available (%v)", total, available, err)
	}
}
