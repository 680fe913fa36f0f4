package enginetest

import (
	"context"
	"errors"
	"os"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

func testFill(t *testing.T, b *bench) {
	ctx := context.Background()
	b.image(t)
	image, v := engine.From{Image: golden}, engine.Volume{ID: "v", Bytes: imageBytes + unit, Name: "name"}
	want := append(goldenContent(), make([]byte, unit)...)
	copy(want[2*unit:], pattern(7, unit))
	copy(want[imageBytes:], pattern(8, unit))
	cut := errors.New("cut")
	t.Run("that fails leaves no volume, and what was written", func(t *testing.T) {
		err := b.engine.Fill(ctx, v, image, func(f *os.File, again bool) error {
			if again {
				t.Error("the first is told that it is not")
			}
			wantBytes(t, "what is to be filled", read(t, f), append(goldenContent(), make([]byte, unit)...))
			f.WriteAt(pattern(7, unit), 2*unit)
			return cut
		})
		if !errors.Is(err, cut) {
			t.Errorf("got %v", err)
		}
		_, err = b.engine.Stat(ctx, "v")
		wantKind(t, backingimage.NotFound, err)
	})
	t.Run("goes on after a restart", func(t *testing.T) {
		e := b.fixture.Reopen(t)
		wantKind(t, ok, e.Fill(ctx, v, image, func(f *os.File, again bool) error {
			if !again {
				t.Error("what was written is forgotten")
			}
			_, err := f.WriteAt(pattern(8, unit), imageBytes)
			return err
		}))
		b.snapshot(t, "filled", "v")
		wantBytes(t, "the volume", b.open(t, engine.From{Snapshot: "filled"}), want)
	})
	t.Run("of a volume that exists does nothing", func(t *testing.T) {
		never := func(*os.File, bool) error { t.Error("it is filled"); return nil }
		wantKind(t, ok, b.engine.Fill(ctx, v, image, never))
		wantKind(t, backingimage.Conflict, b.engine.Fill(ctx, v, engine.From{}, never))
		wantKind(t, backingimage.NotFound, b.engine.Fill(ctx, engine.Volume{ID: "w", Bytes: unit}, engine.From{Image: "none"}, never))
		wantKind(t, backingimage.OutOfRange, b.engine.Fill(ctx, engine.Volume{ID: "w", Bytes: unit}, image, never))
	})
	t.Run("is forgotten by Delete", func(t *testing.T) {
		empty := engine.Volume{ID: "e", Bytes: unit}
		for range 2 {
			err := b.engine.Fill(ctx, empty, engine.From{}, func(f *os.File, again bool) error {
				if again {
					t.Error("it goes on with what was deleted")
				}
				return cut
			})
			if !errors.Is(err, cut) {
				t.Errorf("got %v", err)
			}
			wantKind(t, ok, b.engine.Delete(ctx, "e"))
		}
	})
}

func read(t *testing.T, f *os.File) []byte {
	t.Helper()
	content, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return content
}
