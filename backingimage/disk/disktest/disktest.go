// Package disktest gives tests real disks: pools and filesystems in files of the test's temporary directory, on loop
// devices, that are gone when the test ends, however it ends.
package disktest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/disk/mountinfo"
)

// PoolBytes is enough for most tests.
const PoolBytes = disk.MinPoolBytes

// NeedRoot skips the test, saying what is left out, unless it runs as root.
func NeedRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("left out without root: everything that needs loop devices and mounts")
	}
}

// MustPool opens a new disk in the test's temporary directory; on a filesystem that cannot reflink it lives in a pool of
// that many bytes.
func MustPool(tb testing.TB, bytes int64) *disk.Disk {
	tb.Helper()
	return MustOpen(tb, tb.TempDir(), bytes)
}

// MustOpen opens the disk in a directory. When the test ends everything attached in the disk is detached, and the disk closed.
func MustOpen(tb testing.TB, dir string, bytes int64) *disk.Disk {
	tb.Helper()
	NeedRoot(tb)
	d, err := disk.Open(context.Background(), dir, disk.Options{PoolBytes: bytes})
	if err != nil {
		tb.Fatalf("open disk: %v", err)
	}
	tb.Cleanup(func() {
		if d.Pool() {
			Release(tb, string(d.Layout()))
		}
		if err := d.Close(context.Background()); err != nil {
			tb.Errorf("close disk: %v", err)
		}
		if _, attached, err := loop.Find(filepath.Join(dir, "pool.xfs")); attached || err != nil && !backingimage.Is(err, backingimage.NotFound) {
			tb.Errorf("the pool's loop device is left behind (%v)", err)
		}
	})
	return d
}

// MustFilesystem makes a filesystem (xfs, btrfs, ext4) in a file, mounts it, and returns the mount point. The file is the mount
// point's path with ".img".
func MustFilesystem(tb testing.TB, kind string, bytes int64) string {
	tb.Helper()
	return MustFilesystemIn(tb, tb.TempDir(), kind, bytes)
}

// MustFilesystemIn is MustFilesystem with the file in a directory of the caller's.
func MustFilesystemIn(tb testing.TB, dir, kind string, bytes int64) string {
	tb.Helper()
	NeedRoot(tb)
	file := filepath.Join(dir, kind+".img")
	must(tb, os.WriteFile(file, nil, 0o600))
	must(tb, os.Truncate(file, bytes))
	_, err := command.Run(context.Background(), "mkfs."+kind, "-q", file)
	must(tb, err)
	return MustMount(tb, file, kind, "")
}

// MustMount mounts the filesystem that is in a file, whose name ends in ".img", beside it.
func MustMount(tb testing.TB, file, kind, options string) string {
	tb.Helper()
	mount := strings.TrimSuffix(file, ".img")
	must(tb, os.Mkdir(mount, 0o700))
	device, err := loop.Attach(context.Background(), file, loop.Options{})
	must(tb, err)
	tb.Cleanup(func() { must(tb, loop.Detach(context.Background(), file)) })
	must(tb, unix.Mount(device, mount, kind, unix.MS_NOATIME, options))
	tb.Cleanup(func() {
		Release(tb, mount)
		must(tb, unix.Unmount(mount, 0))
	})
	return mount
}

// MustImage publishes a copy whose raw content fill writes.
func MustImage(tb testing.TB, d *disk.Disk, uid string, fill func(f *os.File)) {
	tb.Helper()
	staged := d.Layout().StagedImage(uid)
	must(tb, os.MkdirAll(staged, 0o700))
	f, err := os.Create(filepath.Join(staged, disk.ImageFile))
	must(tb, err)
	defer f.Close()
	fill(f)
	must(tb, os.WriteFile(filepath.Join(staged, disk.ManifestFile), nil, 0o600))
	must(tb, os.WriteFile(filepath.Join(staged, disk.CopyFile), []byte("{}\n"), 0o600))
	must(tb, d.PublishImage(uid))
	tb.Cleanup(func() { must(tb, d.RemoveImage(uid)) }) // immutable files would outlive the temporary directory
}

// MustUnseal makes the files of a copy changeable, and removable by anybody, as a person could who means it.
func MustUnseal(tb testing.TB, d *disk.Disk, uid string) {
	tb.Helper()
	entries, err := os.ReadDir(d.Layout().Image(uid))
	must(tb, err)
	for _, e := range entries {
		f, err := os.Open(filepath.Join(d.Layout().Image(uid), e.Name()))
		must(tb, err)
		defer f.Close()
		must(tb, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0))
	}
}

// Devices returns the loop devices whose files are on the filesystem of a directory. That must be one that the test made: none
// are returned for the filesystem of temporary directories, where other programs' files are.
func Devices(tb testing.TB, dir string) []loop.Device {
	tb.Helper()
	var st, shared unix.Stat_t
	must(tb, unix.Stat(dir, &st))
	must(tb, unix.Stat(os.TempDir(), &shared))
	if st.Dev == shared.Dev {
		return nil
	}
	all, err := loop.List()
	must(tb, err)
	var here []loop.Device
	for _, d := range all {
		if d.BackingDev == st.Dev {
			here = append(here, d)
		}
	}
	return here
}

// Release unmounts and detaches what the test left attached on a filesystem that it made, so that it can be unmounted.
func Release(tb testing.TB, dir string) {
	tb.Helper()
	for _, d := range Devices(tb, dir) {
		mounts, err := mountinfo.Of(d.Path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			tb.Errorf("release %s: %v", d.Path, err)
		}
		for _, m := range mounts {
			if err := unix.Unmount(m.Point, 0); err != nil && !errors.Is(err, unix.EINVAL) {
				tb.Errorf("unmount %s: %v", m.Point, err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := d.Detach(ctx); err != nil {
			tb.Errorf("release: %v", err)
		}
		cancel()
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
