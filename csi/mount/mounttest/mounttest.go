// Package mounttest gives tests real block devices, and takes them back.
package mounttest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireRoot skips the test, with what is left out, when this process may not mount.
func RequireRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("left out: this test mounts filesystems on loop devices, which needs root")
	}
}

// Loop makes a loop device over a sparse file of so many bytes. At the test's end every mount of it below the test's
// own directories is taken away, and then the device.
func Loop(tb testing.TB, bytes int64) (device, file string) {
	tb.Helper()
	RequireRoot(tb)
	file = filepath.Join(tb.TempDir(), "device.raw")
	MustTruncate(tb, file, bytes)
	device = MustRun(tb, "losetup", "--find", "--show", file)
	tb.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			tb.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device, file
}

// Grow makes the file of a loop device larger, and the device with it.
func Grow(tb testing.TB, device, file string, bytes int64) {
	tb.Helper()
	MustTruncate(tb, file, bytes)
	MustRun(tb, "losetup", "--set-capacity", device)
}

// Directory makes an empty directory whose mounts are taken away at the test's end.
func Directory(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { UnmountAll(dir) })
	return dir
}

// UnmountAll takes away every mount on a path.
func UnmountAll(path string) {
	for unix.Unmount(path, unix.UMOUNT_NOFOLLOW) == nil {
	}
}

// MustTruncate makes a sparse file, or changes its size.
func MustTruncate(tb testing.TB, path string, bytes int64) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = f.Truncate(bytes)
		f.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// MustWriteAt writes bytes into a device or file and syncs them.
func MustWriteAt(tb testing.TB, path string, offset int64, data []byte) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, offset); err != nil {
		tb.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		tb.Fatal(err)
	}
}

// MustRun runs a program and returns its trimmed standard output.
func MustRun(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var stderr []byte
		if exit, ok := err.(*exec.ExitError); ok {
			stderr = exit.Stderr
		}
		tb.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, stderr)
	}
	return strings.TrimSpace(string(out))
}
