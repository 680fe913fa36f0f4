package enginetest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

// snapshot takes a snapshot.
func (b *bench) snapshot(t *testing.T, id, volume string) {
	t.Helper()
	wantKind(t, ok, b.engine.Snapshot(context.Background(), engine.Snapshot{ID: id, Volume: volume, Name: "name-" + id}))
}

// open reads what is in a snapshot or an image.
func (b *bench) open(t *testing.T, of engine.From) []byte {
	t.Helper()
	f, err := b.engine.Open(context.Background(), of)
	wantKind(t, ok, err)
	defer f.Close()
	content, err := io.ReadAll(f)
	wantKind(t, ok, err)
	return content
}

func testSnapshot(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	b.clone(t, "v", imageBytes)
	before := time.Now()
	b.snapshot(t, "s1", "v")
	device := hold(t, b.attach(t, "v", engine.AttachOptions{}))
	if _, err := device.WriteAt(pattern(5, unit), unit); err != nil { // and no sync
		t.Fatal(err)
	}
	b.snapshot(t, "s2", "v")
	want := goldenContent()
	copy(want[unit:], pattern(5, unit))
	writeDevice(t, device.Name(), pattern(6, unit), 2*unit)
	t.Run("has what was written before it, and nothing that was after", func(t *testing.T) {
		wantBytes(t, "the first", b.open(t, engine.From{Snapshot: "s1"}), goldenContent())
		wantBytes(t, "the second", b.open(t, engine.From{Snapshot: "s2"}), want)
	})
	t.Run("says what it is", func(t *testing.T) {
		info, err := b.engine.StatSnapshot(ctx, "s1")
		wantKind(t, ok, err)
		if info.Snapshot != (engine.Snapshot{ID: "s1", Volume: "v", Name: "name-s1"}) || info.Bytes != imageBytes || info.UsedBytes <= 0 ||
			info.Created.Before(before) || info.Created.After(time.Now()) {
			t.Errorf("got %+v", info)
		}
		list, err := b.engine.ListSnapshots(ctx)
		wantKind(t, ok, err)
		if len(list) != 2 || list[0] != info || list[1].ID != "s2" {
			t.Errorf("got %+v", list)
		}
		volumes, err := b.engine.List(ctx)
		if wantKind(t, ok, err); len(volumes) != 1 {
			t.Errorf("snapshots are listed as volumes: %v", volumes)
		}
	})
	t.Run("again does nothing", func(t *testing.T) {
		b.snapshot(t, "s1", "v")
		wantBytes(t, "it", b.open(t, engine.From{Snapshot: "s1"}), goldenContent())
	})
	t.Run("of another volume is Conflict", func(t *testing.T) {
		wantKind(t, backingimage.Conflict, b.engine.Snapshot(ctx, engine.Snapshot{ID: "s1", Volume: "other"}))
	})
	t.Run("of no volume is NotFound and leaves none", func(t *testing.T) {
		wantKind(t, backingimage.NotFound, b.engine.Snapshot(ctx, engine.Snapshot{ID: "s3", Volume: "other"}))
		_, err := b.engine.StatSnapshot(ctx, "s3")
		wantKind(t, backingimage.NotFound, err)
	})
	t.Run("becomes volumes that live by themselves", func(t *testing.T) { b.restored(t, want) })
	t.Run("stays when its volume goes", func(t *testing.T) {
		device.Close()
		wantKind(t, ok, b.engine.Detach(ctx, "v"))
		wantKind(t, ok, b.engine.Delete(ctx, "v"))
		wantBytes(t, "it", b.open(t, engine.From{Snapshot: "s2"}), want)
		b.snapshot(t, "s2", "v")
	})
	t.Run("goes, and harms no volume made from it", func(t *testing.T) {
		wantKind(t, ok, b.engine.DeleteSnapshot(ctx, "s2"))
		wantKind(t, ok, b.engine.DeleteSnapshot(ctx, "s2"))
		_, err := b.engine.StatSnapshot(ctx, "s2")
		wantKind(t, backingimage.NotFound, err)
		_, err = b.engine.Open(ctx, engine.From{Snapshot: "s2"})
		wantKind(t, backingimage.NotFound, err)
		wantBytes(t, "the volume", b.content(t, "restored"), join(want, zeros(2*unit)))
	})
	wantKind(t, backingimage.Invalid, b.engine.Snapshot(ctx, engine.Snapshot{ID: "../s", Volume: "v"}))
	wantKind(t, backingimage.Invalid, b.engine.Snapshot(ctx, engine.Snapshot{ID: "s", Volume: "../v"}))
	wantKind(t, backingimage.Invalid, b.engine.DeleteSnapshot(ctx, ""))
}

// restored makes a volume of the snapshot s2, which has the content want, and writes to it.
func (b *bench) restored(t *testing.T, want []byte) {
	ctx := context.Background()
	from := engine.From{Snapshot: "s2"}
	wantKind(t, backingimage.OutOfRange, b.engine.Clone(ctx, engine.Volume{ID: "small", Bytes: unit}, from))
	for _, id := range []string{"restored", "written", "restored"} {
		wantKind(t, ok, b.engine.Clone(ctx, engine.Volume{ID: id, Bytes: imageBytes + 2*unit}, from))
	}
	writeDevice(t, b.attach(t, "written", engine.AttachOptions{}), pattern(8, unit), 0)
	wantBytes(t, "the volume", b.content(t, "restored"), join(want, zeros(2*unit)))
	wantBytes(t, "the snapshot", b.open(t, from), want)
	wantKind(t, backingimage.Conflict, b.engine.Clone(ctx, engine.Volume{ID: "restored", Bytes: imageBytes + 2*unit}, engine.From{Snapshot: "s1"}))
	wantKind(t, backingimage.NotFound, b.engine.Clone(ctx, engine.Volume{ID: "w", Bytes: imageBytes}, engine.From{Snapshot: "none"}))
}

func testImport(t *testing.T, b *bench) {
	ctx := context.Background()
	path := filepath.Join(b.fixture.Room, "arrived")
	wantKind(t, ok, os.WriteFile(path, goldenContent(), 0o600))
	from := engine.From{Snapshot: "of-another-disk"}
	for range 2 {
		wantKind(t, ok, b.engine.Import(ctx, engine.Volume{ID: "v", Bytes: 10 * unit}, from, path))
	}
	wantBytes(t, "the volume", b.content(t, "v"), join(goldenContent(), zeros(2*unit)))
	wantBytes(t, "the file", readDevice(t, path), goldenContent())
	wantKind(t, backingimage.OutOfRange, b.engine.Import(ctx, engine.Volume{ID: "w", Bytes: unit}, from, path))
	wantKind(t, ok, os.Remove(path))
	wantKind(t, backingimage.NotFound, b.engine.Import(ctx, engine.Volume{ID: "w", Bytes: 10 * unit}, from, path))
	wantKind(t, ok, b.engine.Import(ctx, engine.Volume{ID: "v", Bytes: 10 * unit}, from, path))
}

// testExtents writes here and there between snapshots. What is not among the extents must be equal, and of what is written in whole
// units, nothing else may be among them.
func testExtents(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	b.clone(t, "v", imageBytes)
	b.snapshot(t, "s0", "v")
	device := b.attach(t, "v", engine.AttachOptions{})
	writeDevice(t, device, pattern(5, unit), 2*unit) // into the hole
	b.snapshot(t, "s1", "v")
	writeDevice(t, device, pattern(1, unit), 0)    // over data, the same bytes
	writeDevice(t, device, pattern(6, unit), unit) // beside what is there
	b.snapshot(t, "s2", "v")
	wantKind(t, ok, punch(device, imageBytes-unit, unit))
	wantKind(t, ok, b.engine.Resize(ctx, "v", imageBytes+4*unit))
	writeDevice(t, device, pattern(7, unit), imageBytes+2*unit)
	b.snapshot(t, "s3", "v")
	wantKind(t, ok, b.engine.Detach(ctx, "v"))
	image := engine.From{Image: golden}
	for _, tc := range []struct {
		of, base engine.From
		want     string // offset+length, in units
	}{
		{image, engine.From{}, "0+1 7+1"},
		{snap("s0"), engine.From{}, "0+1 7+1"},
		{snap("s0"), image, ""},
		{snap("s0"), snap("s0"), ""},
		{snap("s1"), engine.From{}, "0+1 2+1 7+1"},
		{snap("s1"), image, "2+1"},
		{snap("s1"), snap("s0"), "2+1"},
		{snap("s0"), snap("s1"), "2+1"},
		{snap("s2"), snap("s1"), "0+2"},
		{snap("s2"), image, "0+3"},
		{snap("s3"), snap("s2"), "7+1 10+1"},
		{snap("s3"), engine.From{}, "0+3 10+1"},
		{snap("s2"), snap("s3"), "7+1"},
	} {
		t.Run(fmt.Sprintf("of %v since %v", tc.of, tc.base), func(t *testing.T) {
			got, err := b.engine.Extents(ctx, tc.of, tc.base)
			wantKind(t, ok, err)
			b.checkExtents(t, got, tc.of, tc.base)
			if text := inUnits(got); text != tc.want {
				t.Errorf("got %q, want %q", text, tc.want)
			}
		})
	}
	_, err := b.engine.Extents(ctx, snap("none"), engine.From{})
	wantKind(t, backingimage.NotFound, err)
	_, err = b.engine.Extents(ctx, snap("s0"), snap("none"))
	wantKind(t, backingimage.NotFound, err)
	_, err = b.engine.Extents(ctx, engine.From{Volume: "v"}, engine.From{})
	wantKind(t, backingimage.Invalid, err)
	_, err = b.engine.Extents(ctx, snap("s0"), engine.From{Volume: "v"})
	wantKind(t, backingimage.Invalid, err)
}

// inUnits is a list of extents as offset+length, in units.
func inUnits(list []engine.Extent) string {
	var text []string
	for _, x := range list {
		text = append(text, fmt.Sprintf("%g+%g", float64(x.Offset)/unit, float64(x.Bytes)/unit))
	}
	return strings.Join(text, " ")
}

func snap(id string) engine.From { return engine.From{Snapshot: id} }

// checkExtents checks that two contents are equal outside of the extents, which are sorted, apart and inside of the content.
func (b *bench) checkExtents(t *testing.T, list []engine.Extent, of, base engine.From) {
	t.Helper()
	content, known := b.open(t, of), []byte(nil)
	if base != (engine.From{}) {
		known = b.open(t, base)
	}
	known = join(known, zeros(max(len(content)-len(known), 0)))[:len(content)]
	end := int64(-1)
	for _, x := range list {
		if x.Offset <= end || x.Bytes <= 0 || x.Offset+x.Bytes > int64(len(content)) {
			t.Fatalf("these cannot be: %v", list)
		}
		end = x.Offset + x.Bytes
		copy(known[x.Offset:end], content[x.Offset:end])
	}
	wantBytes(t, "what is outside of the extents", known, content)
}

// punch makes a hole in a device.
func punch(device string, offset, bytes int64) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, bytes)
}
