package enginetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/provisioner/engine"
)

func testExport(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	b.clone(t, "v", imageBytes)
	path := filepath.Join(b.fixture.Room, "export")
	t.Run("of a volume that is not attached", func(t *testing.T) {
		wantKind(t, ok, b.engine.Export(ctx, "v", path))
		wantBytes(t, "the file", readDevice(t, path), goldenContent())
	})
	device := hold(t, b.attach(t, "v", engine.AttachOptions{}))
	if _, err := device.WriteAt(pattern(5, unit), unit); err != nil { // and no sync
		t.Fatal(err)
	}
	want := goldenContent()
	copy(want[unit:], pattern(5, unit))
	t.Run("of an attached one has what was written to it, and replaces an older file", func(t *testing.T) {
		wantKind(t, ok, b.engine.Export(ctx, "v", path))
		wantBytes(t, "the file", readDevice(t, path), want)
	})
	t.Run("is sparse and shares the volume's blocks", func(t *testing.T) {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 4*unit {
			t.Errorf("the file occupies %d bytes (%v)", st.Blocks*512, err)
		}
	})
	t.Run("does not change with the volume, and needs it no longer", func(t *testing.T) {
		writeDevice(t, device.Name(), pattern(6, unit), unit)
		device.Close()
		wantKind(t, ok, b.engine.Detach(ctx, "v"))
		wantKind(t, ok, b.engine.Delete(ctx, "v"))
		wantBytes(t, "the file", readDevice(t, path), want)
	})
	t.Run("of no volume is NotFound and leaves no file", func(t *testing.T) {
		none := filepath.Join(b.fixture.Room, "none")
		wantKind(t, backingimage.NotFound, b.engine.Export(ctx, "v", none))
		if left, err := filepath.Glob(none + "*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v (%v)", left, err)
		}
	})
	for kind, check := range map[string]func(string) error{"ext4": checkExt4, "xfs": checkXFS} {
		t.Run("of a mounted "+kind+" under a writer is clean", func(t *testing.T) { b.exportMounted(t, kind, check) })
	}
	if left := b.fixture.Devices(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// exportMounted exports a volume again and again while its filesystem is written to, and has each export checked.
func (b *bench) exportMounted(t *testing.T, kind string, check func(path string) error) {
	ctx := context.Background()
	b.create(t, kind, 320<<20)
	device := b.attach(t, kind, engine.AttachOptions{})
	if _, err := command.Run(ctx, "mkfs."+kind, "-q", device); err != nil {
		t.Fatal(err)
	}
	point := t.TempDir()
	if err := unix.Mount(device, point, kind, 0, ""); err != nil {
		t.Fatal(err)
	}
	writing, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- writeFiles(writing, point) }()
	for i := range 4 {
		path := filepath.Join(b.fixture.Room, fmt.Sprint(kind, i))
		if err := b.engine.Export(ctx, kind, path); err != nil {
			t.Error(err)
			break
		}
		if err := check(path); err != nil {
			t.Errorf("export %d is not clean: %v", i, err)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the writer was disturbed: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	wantKind(t, ok, b.engine.Detach(ctx, kind))
}

// checkExt4 passes only a filesystem whose journal is empty: one that was frozen or unmounted.
func checkExt4(path string) error { return run("e2fsck", "-fn", path) }

// checkXFS lets the filesystem count its free blocks first, which it leaves to the next mount when it is frozen.
func checkXFS(path string) error {
	ctx := context.Background()
	device, err := loop.Attach(ctx, path, loop.Options{})
	if err != nil {
		return err
	}
	point := path + ".mounted"
	err = os.Mkdir(point, 0o700)
	if err == nil {
		err = unix.Mount(device, point, "xfs", 0, "nouuid")
	}
	if err == nil {
		err = unix.Unmount(point, 0)
	}
	if err := errors.Join(err, loop.Detach(ctx, path)); err != nil {
		return err
	}
	return run("xfs_repair", "-n", "-f", path)
}

func run(program string, args ...string) error {
	out, err := command.Run(context.Background(), program, args...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// writeFiles makes, renames and removes files until ctx ends.
func writeFiles(ctx context.Context, dir string) error {
	for i := 0; ctx.Err() == nil; i++ {
		path := filepath.Join(dir, fmt.Sprint(i%50))
		if err := os.WriteFile(path+".new", pattern(byte(i), 1+i*977%unit), 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
		if i%3 == 0 {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}
