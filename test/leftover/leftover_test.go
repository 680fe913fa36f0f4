package leftover_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/test/leftover"
)

// A volume's file lies in a pool, which is a file too: both loop devices and both mounts must go, in the right order.
func TestReleaseUndoesMountsWithinMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("left out without root: mounts loop devices")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = leftover.Release(dir) }) // again, for a test that failed midway
	pool, inner := filepath.Join(dir, "pool"), filepath.Join(dir, "inner")
	mustMountFile(t, filepath.Join(dir, "pool.img"), pool)
	mustMountFile(t, filepath.Join(pool, "volume.img"), inner)

	if err := leftover.Release(dir); err != nil {
		t.Fatal(err)
	}
	if err := leftover.Release(dir); err != nil {
		t.Errorf("again: %v", err)
	}
	if loops := mustRun(t, "losetup", "--list", "--noheadings", "--output", "BACK-FILE"); strings.Contains(loops, dir) {
		t.Errorf("a loop device remains:\n%s", loops)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("a mount remains: %v", err)
	}
}

func mustMountFile(tb testing.TB, file, point string) {
	tb.Helper()
	mustRun(tb, "truncate", "--size=64M", file)
	mustRun(tb, "mkfs.ext4", "-q", file)
	mustRun(tb, "mkdir", "-p", point)
	// Not mount -o loop: such a device goes with its mount, a driver's does not.
	device := strings.TrimSpace(mustRun(tb, "losetup", "--find", "--show", file))
	mustRun(tb, "mount", device, point)
}

func mustRun(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
