package enginetest

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

func testCreate(t *testing.T, b *bench) {
	ctx := context.Background()
	b.create(t, "empty", 4*unit)
	wantBytes(t, "an empty volume", b.content(t, "empty"), zeros(4*unit))
	t.Run("again does nothing", func(t *testing.T) {
		writeDevice(t, b.attach(t, "empty", engine.AttachOptions{}), pattern(9, 4096), 0)
		b.create(t, "empty", 4*unit)
		wantBytes(t, "the volume", b.content(t, "empty")[:4096], pattern(9, 4096))
	})
	t.Run("with another size is Conflict", func(t *testing.T) {
		wantKind(t, backingimage.Conflict, b.engine.Create(ctx, engine.Volume{ID: "empty", Bytes: 5 * unit}))
	})
	t.Run("as a clone is Conflict", func(t *testing.T) {
		b.image(t)
		wantKind(t, backingimage.Conflict, b.engine.Clone(ctx, engine.Volume{ID: "empty", Bytes: 4 * unit}, engine.From{Image: golden}))
	})
	t.Run("an odd size is rounded up to a sector", func(t *testing.T) {
		b.create(t, "odd", unit+1)
		b.create(t, "odd", unit+1)
		info, err := b.engine.Stat(ctx, "odd")
		wantKind(t, ok, err)
		if info.Bytes != unit+512 {
			t.Errorf("got %d bytes, want %d", info.Bytes, unit+512)
		}
	})
}

func testClone(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	b.clone(t, "a", 12*unit)
	wantBytes(t, "a clone", b.content(t, "a"), join(goldenContent(), zeros(4*unit)))
	t.Run("writes stay in the clone", func(t *testing.T) {
		b.clone(t, "b", imageBytes)
		writeDevice(t, b.attach(t, "a", engine.AttachOptions{}), pattern(7, unit), 512)
		b.clone(t, "c", imageBytes)
		wantBytes(t, "a clone made before the write", b.content(t, "b"), goldenContent())
		wantBytes(t, "a clone made after the write", b.content(t, "c"), goldenContent())
		wantBytes(t, "the clone written to", b.content(t, "a")[512:unit+512], pattern(7, unit))
	})
	t.Run("again does nothing", func(t *testing.T) {
		b.clone(t, "a", 12*unit)
		wantBytes(t, "the clone written to", b.content(t, "a")[512:unit+512], pattern(7, unit))
	})
	t.Run("of another image or size is Conflict", func(t *testing.T) {
		wantKind(t, backingimage.Conflict, b.engine.Clone(ctx, engine.Volume{ID: "a", Bytes: 12 * unit}, engine.From{Image: "another"}))
		wantKind(t, backingimage.Conflict, b.engine.Clone(ctx, engine.Volume{ID: "a", Bytes: 16 * unit}, engine.From{Image: golden}))
		wantKind(t, backingimage.Conflict, b.engine.Create(ctx, engine.Volume{ID: "a", Bytes: 12 * unit}))
	})
	t.Run("smaller than the image is OutOfRange", func(t *testing.T) {
		wantKind(t, backingimage.OutOfRange, b.engine.Clone(ctx, engine.Volume{ID: "small", Bytes: imageBytes - 512}, engine.From{Image: golden}))
		_, err := b.engine.Stat(ctx, "small")
		wantKind(t, backingimage.NotFound, err)
	})
	t.Run("of no image is NotFound", func(t *testing.T) {
		wantKind(t, backingimage.NotFound, b.engine.Clone(ctx, engine.Volume{ID: "x", Bytes: imageBytes}, engine.From{Image: "no-such-image"}))
	})
	t.Run("an image that ends inside a sector is followed by zeros", func(t *testing.T) {
		b.fixture.Image(t, "odd", func(f *os.File) { f.Write(pattern(3, 1000)) })
		wantKind(t, ok, b.engine.Clone(ctx, engine.Volume{ID: "odd", Bytes: 1000}, engine.From{Image: "odd"}))
		wantBytes(t, "the clone", b.content(t, "odd"), join(pattern(3, 1000), zeros(24)))
		wantKind(t, ok, b.engine.Clone(ctx, engine.Volume{ID: "odd-larger", Bytes: unit}, engine.From{Image: "odd"}))
		wantBytes(t, "the larger clone", b.content(t, "odd-larger"), join(pattern(3, 1000), zeros(unit-1000)))
	})
}

func testCloneOfVolume(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	b.clone(t, "source", imageBytes)
	device := hold(t, b.attach(t, "source", engine.AttachOptions{}))
	if _, err := device.WriteAt(pattern(5, unit), unit); err != nil { // and no sync
		t.Fatal(err)
	}
	want := goldenContent()
	copy(want[unit:], pattern(5, unit))
	wantKind(t, ok, b.engine.Clone(ctx, engine.Volume{ID: "copy", Bytes: 10 * unit}, engine.From{Volume: "source"}))
	wantBytes(t, "the clone of an attached volume", b.content(t, "copy"), join(want, zeros(2*unit)))

	t.Run("needs its source no longer", func(t *testing.T) {
		device.Close()
		wantKind(t, ok, b.engine.Delete(ctx, "source"))
		wantBytes(t, "the clone", b.content(t, "copy"), join(want, zeros(2*unit)))
		wantKind(t, ok, b.engine.Clone(ctx, engine.Volume{ID: "copy", Bytes: 10 * unit}, engine.From{Volume: "source"}))
	})
	t.Run("of no volume is NotFound", func(t *testing.T) {
		wantKind(t, backingimage.NotFound, b.engine.Clone(ctx, engine.Volume{ID: "y", Bytes: unit}, engine.From{Volume: "source"}))
	})
	t.Run("smaller than its source is OutOfRange", func(t *testing.T) {
		wantKind(t, backingimage.OutOfRange, b.engine.Clone(ctx, engine.Volume{ID: "y", Bytes: unit}, engine.From{Volume: "copy"}))
	})
}

func testBadInput(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	for _, id := range []string{"", ".", "..", "a/b", "../x", "Upper", "-a", "a_b", "a\x00b", strings.Repeat("x", 254)} {
		_, attach := b.engine.Attach(ctx, id, engine.AttachOptions{})
		_, stat := b.engine.Stat(ctx, id)
		for _, err := range []error{
			attach, stat,
			b.engine.Create(ctx, engine.Volume{ID: id, Bytes: unit}),
			b.engine.Clone(ctx, engine.Volume{ID: id, Bytes: imageBytes}, engine.From{Image: golden}),
			b.engine.Clone(ctx, engine.Volume{ID: "v", Bytes: imageBytes}, engine.From{Image: golden, Volume: id + "x"}),
			b.engine.Delete(ctx, id), b.engine.Detach(ctx, id), b.engine.Resize(ctx, id, unit),
			b.engine.Export(ctx, id, filepath.Join(b.fixture.Room, "bad")),
		} {
			if !backingimage.Is(err, backingimage.Invalid) {
				t.Errorf("volume ID %q: got %v, want an Invalid error", id, err)
			}
		}
	}
	for _, from := range []engine.From{{}, {Image: ".."}, {Image: "a/b"}, {Volume: "../v"}, {Volume: "v"}} {
		wantKind(t, backingimage.Invalid, b.engine.Clone(ctx, engine.Volume{ID: "v", Bytes: imageBytes}, from))
	}
	b.create(t, "there", unit)
	for _, bytes := range []int64{0, -1, math.MinInt64, math.MaxInt64} {
		wantKind(t, backingimage.OutOfRange, b.engine.Create(ctx, engine.Volume{ID: "v", Bytes: bytes}))
		wantKind(t, backingimage.OutOfRange, b.engine.Resize(ctx, "there", bytes))
	}
	list, err := b.engine.List(ctx)
	wantKind(t, ok, err)
	if len(list) != 1 {
		t.Errorf("bad input left volumes behind: %v", list)
	}
}
