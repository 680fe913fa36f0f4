package enginetest

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

func testAttach(t *testing.T, b *bench) {
	ctx := context.Background()
	b.create(t, "v", 4*unit)
	device := b.attach(t, "v", engine.AttachOptions{})
	t.Run("again returns the same device", func(t *testing.T) {
		if again := b.attach(t, "v", engine.AttachOptions{}); again != device {
			t.Errorf("got %s, want %s", again, device)
		}
	})
	b.attach(t, "v", engine.AttachOptions{})
	t.Run("Stat and List show the device", func(t *testing.T) {
		b.create(t, "v", 4*unit)
		device := b.attach(t, "v", engine.AttachOptions{})
		info, err := b.engine.Stat(ctx, "v")
		wantKind(t, ok, err)
		list, err := b.engine.List(ctx)
		wantKind(t, ok, err)
		if info.Device != device || list[0].Device != device {
			t.Errorf("got %q from Stat and %q from List, want %s", info.Device, list[0].Device, device)
		}
	})
	t.Run("no volume is NotFound", func(t *testing.T) {
		_, err := b.engine.Attach(ctx, "none", engine.AttachOptions{})
		wantKind(t, backingimage.NotFound, err)
	})
}

func testAttachOptions(t *testing.T, b *bench) {
	ctx := context.Background()
	b.create(t, "v", 4*unit)
	for _, sector := range []int{0, 512, 4096} {
		device := b.attach(t, "v", engine.AttachOptions{SectorBytes: sector})
		if got := sectorOf(t, device); got != max(sector, 512) {
			t.Errorf("asked for sectors of %d bytes, got %d", sector, got)
		}
		wantKind(t, ok, b.engine.Detach(ctx, "v"))
	}
	t.Run("a read-only device refuses writes", func(t *testing.T) {
		device := b.attach(t, "v", engine.AttachOptions{ReadOnly: true})
		if f, err := os.OpenFile(device, os.O_RDWR, 0); err == nil {
			defer f.Close()
			_, err := f.WriteAt(pattern(1, 4096), 0)
			if err == nil {
				err = f.Sync()
			}
			if err == nil {
				t.Error("a write succeeded")
			}
		}
	})
	t.Run("other options than the attached device has are Conflict", func(t *testing.T) {
		b.attach(t, "v", engine.AttachOptions{})
		_, err := b.engine.Attach(ctx, "v", engine.AttachOptions{ReadOnly: true})
		wantKind(t, backingimage.Conflict, err)
		_, err = b.engine.Attach(ctx, "v", engine.AttachOptions{SectorBytes: 4096})
		wantKind(t, backingimage.Conflict, err)
	})
	t.Run("other sectors than 512 and 4096 are Invalid", func(t *testing.T) {
		_, err := b.engine.Attach(ctx, "v", engine.AttachOptions{SectorBytes: 1000})
		wantKind(t, backingimage.Invalid, err)
	})
	t.Run("partitions are found", func(t *testing.T) { testPartitions(t, b) })
}

// testPartitions attaches an image with one MBR partition of one unit.
func testPartitions(t *testing.T, b *bench) {
	b.fixture.Image(t, "parted", func(f *os.File) {
		mbr := zeros(512)
		copy(mbr[446:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0}) // from sector 512, 512 sectors
		mbr[510], mbr[511] = 0x55, 0xaa
		f.WriteAt(mbr, 0)
		f.WriteAt(pattern(4, unit), unit)
		f.Truncate(4 * unit)
	})
	wantKind(t, ok, b.engine.Clone(context.Background(), engine.Volume{ID: "parted", Bytes: 4 * unit}, engine.From{Image: "parted"}))
	for _, before := range []bool{false, true} { // attached anew, and attached already without partitions
		if before {
			b.attach(t, "parted", engine.AttachOptions{})
		}
		device := b.attach(t, "parted", engine.AttachOptions{Partitions: true})
		wantBytes(t, "the partition", readDevice(t, device+"p1"), pattern(4, unit))
		wantKind(t, ok, b.engine.Detach(context.Background(), "parted"))
		if _, err := os.Stat(device + "p1"); err == nil {
			t.Error("the partition is there after its device was detached")
		}
	}
}

func sectorOf(t *testing.T, device string) int {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func testDetach(t *testing.T, b *bench) {
	ctx := context.Background()
	b.create(t, "v", 4*unit)
	t.Run("of a volume that is not attached, or is none, succeeds", func(t *testing.T) {
		wantKind(t, ok, b.engine.Detach(ctx, "v"))
		wantKind(t, ok, b.engine.Detach(ctx, "none"))
	})
	t.Run("of an open device is InUse and leaves it alone", func(t *testing.T) {
		device := hold(t, b.attach(t, "v", engine.AttachOptions{}))
		wantKind(t, backingimage.InUse, b.engine.Detach(ctx, "v"))
		if _, err := device.WriteAt(pattern(6, 4096), 0); err != nil {
			t.Fatalf("the device that could not be detached cannot be written: %v", err)
		}
		device.Close()
		if len(b.fixture.Devices(t)) != 1 {
			t.Error("the device vanished after its last user closed it")
		}
		wantKind(t, ok, b.engine.Detach(ctx, "v"))
		wantBytes(t, "the volume", b.content(t, "v")[:4096], pattern(6, 4096))
	})
	if left := b.fixture.Devices(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func testDelete(t *testing.T, b *bench) {
	ctx := context.Background()
	wantKind(t, ok, b.engine.Delete(ctx, "none"))
	b.create(t, "v", 4*unit)
	t.Run("of an open volume is InUse and leaves it alone", func(t *testing.T) {
		device := hold(t, b.attach(t, "v", engine.AttachOptions{}))
		wantKind(t, backingimage.InUse, b.engine.Delete(ctx, "v"))
		if _, err := device.WriteAt(pattern(6, 4096), 0); err != nil {
			t.Fatal(err)
		}
		device.Close()
	})
	t.Run("of an idle attached volume takes its device", func(t *testing.T) {
		b.attach(t, "v", engine.AttachOptions{})
		wantKind(t, ok, b.engine.Delete(ctx, "v"))
		wantKind(t, ok, b.engine.Delete(ctx, "v"))
		_, err := b.engine.Stat(ctx, "v")
		wantKind(t, backingimage.NotFound, err)
		if left := b.fixture.Devices(t); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	t.Run("leaves nothing for the next volume of that name", func(t *testing.T) {
		b.create(t, "v", 4*unit)
		wantBytes(t, "the new volume", b.content(t, "v"), zeros(4*unit))
	})
}

func testResize(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	b.clone(t, "v", imageBytes)
	t.Run("detached", func(t *testing.T) {
		wantKind(t, ok, b.engine.Resize(ctx, "v", 10*unit))
		wantBytes(t, "the volume", b.content(t, "v"), join(goldenContent(), zeros(2*unit)))
	})
	t.Run("attached, the device grows under its user", func(t *testing.T) {
		device := b.attach(t, "v", engine.AttachOptions{})
		held := hold(t, device)
		wantKind(t, ok, b.engine.Resize(ctx, "v", 12*unit))
		if _, err := held.WriteAt(pattern(8, 4096), 12*unit-4096); err != nil {
			t.Errorf("write at the new end: %v", err)
		}
		held.Close()
		wantBytes(t, "the volume", readDevice(t, device), join(goldenContent(), zeros(4*unit-4096), pattern(8, 4096)))
	})
	t.Run("to the same or a smaller size does nothing", func(t *testing.T) {
		wantKind(t, ok, b.engine.Resize(ctx, "v", 12*unit))
		wantKind(t, ok, b.engine.Resize(ctx, "v", unit))
		info, err := b.engine.Stat(ctx, "v")
		wantKind(t, ok, err)
		if info.Bytes != 12*unit {
			t.Errorf("got %d bytes, want %d", info.Bytes, 12*unit)
		}
	})
	t.Run("of no volume is NotFound", func(t *testing.T) {
		wantKind(t, backingimage.NotFound, b.engine.Resize(ctx, "none", unit))
	})
}

func testList(t *testing.T, b *bench) {
	ctx := context.Background()
	list, err := b.engine.List(ctx)
	wantKind(t, ok, err)
	if len(list) != 0 {
		t.Fatalf("a new disk has volumes: %v", list)
	}
	b.image(t)
	b.clone(t, "b", imageBytes)
	b.create(t, "c", unit)
	b.create(t, "a", unit)
	b.fixture.Litter(t, "half-made")
	list, err = b.engine.List(ctx)
	wantKind(t, ok, err)
	want := []engine.Info{
		{Volume: engine.Volume{ID: "a", Bytes: unit, Name: "pvc-a"}},
		{Volume: engine.Volume{ID: "b", Bytes: imageBytes, Name: "pvc-b"}, From: engine.From{Image: golden}},
		{Volume: engine.Volume{ID: "c", Bytes: unit, Name: "pvc-c"}},
	}
	if len(list) != len(want) {
		t.Fatalf("got %v, want %v", list, want)
	}
	for i := range list {
		if shared := list[i].UsedBytes; (shared > 0) != (list[i].ID == "b") {
			t.Errorf("volume %s uses %d bytes", list[i].ID, shared)
		}
		list[i].UsedBytes = 0
		if list[i] != want[i] {
			t.Errorf("got %+v, want %+v", list[i], want[i])
		}
	}
	c, err := b.engine.Capacity(ctx)
	wantKind(t, ok, err)
	if c.TotalBytes <= 0 || c.AvailableBytes <= 0 || c.AvailableBytes > c.TotalBytes {
		t.Errorf("capacity is %+v", c)
	}
}
