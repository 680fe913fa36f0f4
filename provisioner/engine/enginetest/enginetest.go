// Package enginetest is the suite that every engine passes: the contract of package engine, sentence by sentence,
// on a real disk, through real block devices, and under kill -9.
package enginetest

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

// Fixture is what the suite does to an engine's disk behind the engine's back.
type Fixture struct {
	// Image puts a ready copy on the disk, whose raw content fill writes.
	Image func(tb testing.TB, uid string, fill func(f *os.File))
	// Reopen returns an engine on the same disk, as a restarted process has it.
	Reopen func(tb testing.TB) engine.Engine
	// Litter leaves behind what a Create that was killed half-way leaves.
	Litter func(tb testing.TB, id string)
	// Devices returns the block devices that volumes of the disk have.
	Devices func(tb testing.TB) []string
	// Room is a directory on the disk for files that the tests make.
	Room string
	// Place is what the function given to Main opens the disk by, in another process.
	Place string
}

// Make returns an engine on a new, empty disk that lives as long as the test.
type Make func(tb testing.TB) (engine.Engine, Fixture)

// Run runs the suite, each test on a disk of its own.
func Run(t *testing.T, make Make) {
	tests := []struct {
		name string
		test func(t *testing.T, b *bench)
	}{
		{"create", testCreate},
		{"clone", testClone},
		{"clone of a volume", testCloneOfVolume},
		{"export", testExport},
		{"snapshot", testSnapshot},
		{"import", testImport},
		{"fill", testFill},
		{"extents", testExtents},
		{"attach", testAttach},
		{"attach options", testAttachOptions},
		{"detach", testDetach},
		{"delete", testDelete},
		{"resize", testResize},
		{"list", testList},
		{"bad input", testBadInput},
		{"concurrency", testConcurrency},
		{"restart", testRestart},
		{"kill", testKill},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e, f := make(t)
			test.test(t, &bench{engine: e, fixture: f})
		})
	}
}

// Sizes and names that the tests share.
const (
	unit       = 256 << 10
	golden     = "5f0c7d1e-golden" // UID of the image that every test has
	imageBytes = 8 * unit
)

// bench is what a test works at.
type bench struct {
	engine  engine.Engine
	fixture Fixture
}

// image puts the golden image on the disk.
func (b *bench) image(t *testing.T) {
	t.Helper()
	b.fixture.Image(t, golden, fillGolden)
}

// fillGolden writes data at the beginning and before the end, and leaves a hole between them.
func fillGolden(f *os.File) {
	f.WriteAt(pattern(1, unit), 0)
	f.WriteAt(pattern(2, unit), imageBytes-unit)
}

// goldenContent is what fillGolden writes.
func goldenContent() []byte {
	content := make([]byte, imageBytes)
	copy(content, pattern(1, unit))
	copy(content[imageBytes-unit:], pattern(2, unit))
	return content
}

// pattern returns bytes that differ from those of any other seed, and from zeros.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed ^ byte(i) ^ byte(i>>8) | 1
	}
	return p
}

// clone makes a clone of the golden image.
func (b *bench) clone(t *testing.T, id string, bytes int64) {
	t.Helper()
	wantKind(t, ok, b.engine.Clone(context.Background(), engine.Volume{ID: id, Bytes: bytes, Name: "pvc-" + id}, engine.From{Image: golden}))
}

// create makes an empty volume.
func (b *bench) create(t *testing.T, id string, bytes int64) {
	t.Helper()
	wantKind(t, ok, b.engine.Create(context.Background(), engine.Volume{ID: id, Bytes: bytes, Name: "pvc-" + id}))
}

// attach attaches a volume and detaches it when the test ends.
func (b *bench) attach(t *testing.T, id string, o engine.AttachOptions) string {
	t.Helper()
	device, err := b.engine.Attach(context.Background(), id, o)
	wantKind(t, ok, err)
	t.Cleanup(func() { b.engine.Detach(context.Background(), id) })
	return device
}

// content attaches a volume, reads all of it and detaches it.
func (b *bench) content(t *testing.T, id string) []byte {
	t.Helper()
	content := readDevice(t, b.attach(t, id, engine.AttachOptions{}))
	wantKind(t, ok, b.engine.Detach(context.Background(), id))
	return content
}

// ok is the Kind of no error.
const ok backingimage.Kind = -1

// wantKind checks an error's Kind.
func wantKind(t *testing.T, want backingimage.Kind, err error) {
	t.Helper()
	if err == nil && want == ok || err != nil && want != ok && backingimage.Is(err, want) {
		return
	}
	if want == ok {
		t.Fatalf("got %s error %v, want none", backingimage.KindOf(err), err)
	}
	t.Fatalf("got %s error %v, want %s", backingimage.KindOf(err), err, want)
}

// wantBytes checks content without printing megabytes.
func wantBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s has %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s differs at byte %d: got %#x, want %#x", what, i, got[i], want[i])
		}
	}
}

func readDevice(t *testing.T, device string) []byte {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	content, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// writeDevice writes to a device and syncs it.
func writeDevice(t *testing.T, device string, p []byte, offset int64) {
	t.Helper()
	f := hold(t, device)
	defer f.Close()
	if _, err := f.WriteAt(p, offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// hold opens a device, so that it cannot be detached.
func hold(t *testing.T, device string) *os.File {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func zeros(n int) []byte { return make([]byte, n) }

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
