package mount_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/csi/mount/mounttest"
)

// capacity mounts a device for a moment and returns the filesystem's size.
func capacity(t *testing.T, d mount.Device, fsType string) int64 {
	t.Helper()
	dir := mounttest.Directory(t)
	must(t, mount.Filesystem(t.Context(), d, dir, fsType, nil))
	bytes, _, err := mount.UsageOf(dir)
	must(t, err)
	must(t, mount.Unmount(dir))
	return bytes.Total
}

func TestExt4GrowsUnmountedAfterUse(t *testing.T) {
	device, file := mounttest.Loop(t, 64*mib)
	d := mustInspect(t, device)
	must(t, mount.Format(t.Context(), d, mount.Ext4, ""))
	mounttest.MustRun(t, "tune2fs", "-T", "20200101", device) // so that it counts as mounted since it was checked
	before := capacity(t, d, mount.Ext4)
	mounttest.Grow(t, device, file, 256*mib)
	d = mustInspect(t, device)
	for range 2 {
		must(t, mount.Check(t.Context(), d, mount.Ext4))
		must(t, mount.GrowUnmounted(t.Context(), d, mount.Ext4))
	}
	if after := capacity(t, d, mount.Ext4); after < before+150*mib {
		t.Errorf("grew from %d to %d bytes on a device of %d", before, after, d.Bytes)
	}
}

// The remainder is too small for another group; growing must not be tried, because it would cost a full check each time.
func TestExt4IsLeftAloneWhenNothingIsGained(t *testing.T) {
	device, file := mounttest.Loop(t, 128*mib)
	d := mustInspect(t, device)
	must(t, mount.Format(t.Context(), d, mount.Ext4, "-b 4096"))
	mounttest.Grow(t, device, file, 128*mib+64<<10)
	d = mustInspect(t, device)
	mounttest.MustRun(t, "tune2fs", "-T", "20200101", device)
	before := capacity(t, d, mount.Ext4)
	must(t, mount.GrowUnmounted(t.Context(), d, mount.Ext4))
	equal(t, capacity(t, d, mount.Ext4), before)
	if last := mounttest.MustRun(t, "sh", "-c", "dumpe2fs -h "+device+" 2>/dev/null | grep 'Last checked'"); !strings.Contains(last, "2020") {
		t.Errorf("the filesystem was checked in vain: %s", last)
	}
}

func TestXFSGrowsMounted(t *testing.T) {
	device, file := mounttest.Loop(t, 320*mib)
	d := mustInspect(t, device)
	must(t, mount.Format(t.Context(), d, mount.XFS, ""))
	dir := mounttest.Directory(t)
	must(t, mount.Filesystem(t.Context(), d, dir, mount.XFS, nil))
	before, _, err := mount.UsageOf(dir)
	must(t, err)
	mounttest.Grow(t, device, file, 640*mib)
	d = mustInspect(t, device)
	for range 2 {
		must(t, mount.GrowMounted(t.Context(), d, dir, mount.XFS))
	}
	after, _, err := mount.UsageOf(dir)
	must(t, err)
	if after.Total < before.Total+300*mib {
		t.Errorf("grew from %d to %d bytes", before.Total, after.Total)
	}
}

// With CAP_SYS_RESOURCE it grows; without, the error says what to do and the next unmounted growth does it.
func TestExt4GrowsMountedOrSaysWhyNot(t *testing.T) {
	device, file := mounttest.Loop(t, 64*mib)
	d := mustInspect(t, device)
	must(t, mount.Format(t.Context(), d, mount.Ext4, ""))
	dir := mounttest.Directory(t)
	must(t, mount.Filesystem(t.Context(), d, dir, mount.Ext4, nil))
	mounttest.Grow(t, device, file, 128*mib)
	d = mustInspect(t, device)
	err := mount.GrowMounted(t.Context(), d, dir, mount.Ext4)
	if backingimage.Is(err, backingimage.Precondition) && strings.Contains(err.Error(), "staged again") {
		must(t, mount.Unmount(dir))
		must(t, mount.GrowUnmounted(t.Context(), d, mount.Ext4))
		must(t, mount.Filesystem(t.Context(), d, dir, mount.Ext4, nil))
	} else {
		must(t, err)
	}
	bytes, _, err := mount.UsageOf(dir)
	must(t, err)
	if bytes.Total < 100*mib {
		t.Errorf("size is %d bytes after growing to 128 MiB", bytes.Total)
	}
}

func TestDamageIsCorrupt(t *testing.T) {
	device, _ := mounttest.Loop(t, 64*mib)
	d := mustInspect(t, device)
	must(t, mount.Format(t.Context(), d, mount.Ext4, "-b 1024"))
	mounttest.MustRun(t, "debugfs", "-w", "-R", "clri <2>", device) // the root directory
	mounttest.MustRun(t, "debugfs", "-w", "-R", "ssv state 0", device)
	err := mount.Check(t.Context(), d, mount.Ext4)
	if !backingimage.Is(err, backingimage.Corrupt) {
		t.Fatalf("got %v, want Corrupt", err)
	}
}

func TestCheckOfAMountedFilesystemFails(t *testing.T) {
	d, _ := mustStage(t, mount.Ext4)
	if err := mount.Check(t.Context(), d, mount.Ext4); err == nil {
		t.Fatal("a mounted ext4 was checked")
	}
}

// A mkfs killed anywhere leaves a device that is blank or unfinished, or one whose filesystem is whole.
func TestKilledFormatIsNeverTakenAsDone(t *testing.T) {
	device, _ := mounttest.Loop(t, 1024*mib)
	d := mustInspect(t, device)
	for _, fsType := range []string{mount.Ext4, mount.XFS} {
		t.Run(fsType, func(t *testing.T) {
			for range 12 {
				mounttest.MustRun(t, "wipefs", "--all", "--quiet", device)
				cmd := exec.Command("mkfs."+fsType, map[string]string{mount.Ext4: "-F", mount.XFS: "-f"}[fsType], device)
				must(t, cmd.Start())
				time.Sleep(time.Duration(rand.Int64N(int64(10 * time.Millisecond))))
				_ = cmd.Process.Signal(syscall.SIGKILL)
				_ = cmd.Wait()
				c, err := mount.Probe(t.Context(), d)
				must(t, err)
				if c.Blank() || c.Unfinished {
					continue
				}
				equal(t, c.Type, fsType)
				capacity(t, d, fsType)
			}
			must(t, mount.Format(t.Context(), d, fsType, ""))
			capacity(t, d, fsType)
		})
	}
}

func TestFormatRefuses(t *testing.T) {
	d := mount.Device{Path: os.DevNull, Bytes: 64 * mib} // no program is run
	for name, c := range map[string]struct {
		fsType, parameters string
		want               backingimage.Kind
	}{
		"a filesystem that Plinth does not make":    {"btrfs", "", backingimage.Invalid},
		"an XFS smaller than mkfs.xfs makes":        {mount.XFS, "", backingimage.OutOfRange},
		"a directory of the host to copy":           {mount.Ext4, "-d /etc", backingimage.Invalid},
		"a directory of the host, letters together": {mount.Ext4, "-qdetc", backingimage.Invalid},
		"a value with a path":                       {mount.Ext4, "-U /etc/passwd", backingimage.Invalid},
		"an external journal":                       {mount.Ext4, "-J device=UUID=1", backingimage.Invalid},
		"an external log":                           {mount.XFS, "-l logdev=sdb", backingimage.Invalid},
		"a prototype file":                          {mount.XFS, "-p proto", backingimage.Invalid},
		"a dry run":                                 {mount.Ext4, "-n", backingimage.Invalid},
		"another device":                            {mount.Ext4, "sdb", backingimage.Invalid},
		"a long option":                             {mount.XFS, "--help", backingimage.Invalid},
		"a missing value":                           {mount.Ext4, "-b", backingimage.Invalid},
		"a quote that is not closed":                {mount.Ext4, "-L 'a", backingimage.Invalid},
		"a backslash at the end":                    {mount.Ext4, `-L a\`, backingimage.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			err := mount.Format(t.Context(), d, c.fsType, c.parameters)
			if !backingimage.Is(err, c.want) {
				t.Fatalf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestFormatPassesParameters(t *testing.T) {
	device, _ := mounttest.Loop(t, 400*mib)
	d := mustInspect(t, device)
	must(t, mount.Format(t.Context(), d, mount.Ext4, `-L "two words" -b4096 -O ^metadata_csum`))
	equal(t, mounttest.MustRun(t, "e2label", device), "two words")
	must(t, mount.Format(t.Context(), d, mount.XFS, `-m reflink=0 -L label`))
	equal(t, mounttest.MustRun(t, "blkid", "-p", "-o", "value", "-s", "LABEL", device), "label")
}
