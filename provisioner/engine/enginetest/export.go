package enginetest

import (
	"bytes"
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
	for _, fs := range filesystems {
		t.Run("of a mounted "+fs.kind+" under a writer is clean", func(t *testing.T) { b.exportMounted(t, fs) })
	}
	if left := b.fixture.Devices(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// filesystem is one that is exported while it is mounted.
type filesystem struct {
	kind    string
	flags   uintptr // with which an export is mounted, to look into it
	options string
	check   []string // the program that finds what is not clean, and its arguments
}

// An ext4 that was frozen needs no recovery: noload does none. XFS leaves the counting of free blocks to the next mount.
var filesystems = []filesystem{
	{"ext4", unix.MS_RDONLY, "noload", []string{"e2fsck", "-fn"}},
	{"xfs", 0, "nouuid", []string{"xfs_repair", "-n", "-f"}},
}

// exportMounted exports a volume again and again while its filesystem is written to, and has each export checked: it is
// clean, and has what was written before, synced or not.
func (b *bench) exportMounted(t *testing.T, fs filesystem) {
	ctx := context.Background()
	b.create(t, fs.kind, 320<<20)
	device := b.attach(t, fs.kind, engine.AttachOptions{})
	if err := run("mkfs."+fs.kind, "-q", device); err != nil {
		t.Fatal(err)
	}
	point := t.TempDir()
	if err := unix.Mount(device, point, fs.kind, 0, ""); err != nil {
		t.Fatal(err)
	}
	writing, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- writeFiles(writing, point) }()
	for i := range 4 {
		before, path := fmt.Sprint("before", i), filepath.Join(b.fixture.Room, fmt.Sprint(fs.kind, i))
		err := os.WriteFile(filepath.Join(point, before), pattern(byte(i), unit), 0o600) // and no sync
		if err == nil {
			err = b.engine.Export(ctx, fs.kind, path)
		}
		if err == nil {
			err = fs.holds(path, before, pattern(byte(i), unit))
		}
		if err == nil {
			err = run(fs.check[0], append(fs.check[1:], path)...)
		}
		if err != nil {
			t.Errorf("export %d: %v", i, err)
			break
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the writer was disturbed: %v", err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	wantKind(t, ok, b.engine.Detach(ctx, fs.kind))
}

// holds mounts the filesystem in a file and compares a file in it.
func (fs filesystem) holds(path, name string, want []byte) error {
	ctx := context.Background()
	device, err := loop.Attach(ctx, path, loop.Options{})
	if err != nil {
		return err
	}
	defer loop.Detach(ctx, path)
	point := path + ".mounted"
	if err := os.Mkdir(point, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(device, point, fs.kind, fs.flags, fs.options); err != nil {
		return fmt.Errorf("mount the export: %w", err)
	}
	got, err := os.ReadFile(filepath.Join(point, name))
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s has %d bytes, or other ones than were written", name, len(got))
	}
	return errors.Join(err, unix.Unmount(point, 0), os.Remove(point))
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
