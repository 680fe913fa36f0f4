package unpack_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/format/unpack"
)

// tools pack their input.
var tools = map[string][]string{
	format.GZip: {"gzip", "-c"}, format.XZ: {"xz", "-c", "-1"}, format.Zstd: {"zstd", "-q", "-c"}, format.BZip2: {"bzip2", "-c"},
}

// mustPack packs with the standard tool.
func mustPack(tb testing.TB, name string, content []byte, options ...string) []byte {
	tb.Helper()
	tool := tools[name]
	cmd := exec.Command(tool[0], append(tool[1:], options...)...)
	var out, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(content), &out, &stderr
	if err := cmd.Run(); err != nil {
		tb.Fatalf("%v: %v: %s", cmd.Args, err, &stderr)
	}
	return out.Bytes()
}

// content is data that compresses by half.
func content(seed byte, n int) []byte {
	r := rand.NewChaCha8([32]byte{seed})
	p := make([]byte, n)
	for at := 0; at < n; at += 8 << 10 {
		r.Read(p[at:min(at+4<<10, n)])
	}
	return p
}

func open(name string, packed io.Reader) ([]byte, error) {
	r, err := unpack.Open(name, packed)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// skippable is a frame that zstd skips.
var skippable = []byte("\x50\x2a\x4d\x18\x04\x00\x00\x00abcd")

func TestItUnpacksWhatTheToolsDo(t *testing.T) {
	one, two := content(1, 300<<10), content(2, 70<<10)
	for _, c := range []struct {
		what, name string
		packed     func(a, b []byte) []byte
		options    []string
	}{
		{"two members", format.GZip, func(a, b []byte) []byte { return join(a, b) }, nil},
		{"zeros behind", format.GZip, func(a, b []byte) []byte { return join(a, b, make([]byte, 1000)) }, nil},
		{"garbage behind", format.GZip, func(a, b []byte) []byte { return join(a, b, []byte("garbage")) }, nil},
		{"one byte behind", format.GZip, func(a, b []byte) []byte { return join(a, b, []byte{0x1f}) }, nil},
		{"two streams", format.BZip2, func(a, b []byte) []byte { return join(a, b) }, nil},
		{"garbage behind", format.BZip2, func(a, b []byte) []byte { return join(a, b, []byte("garbage")) }, nil},
		{"two frames", format.Zstd, func(a, b []byte) []byte { return join(a, b) }, nil},
		{"skippable frames", format.Zstd, func(a, b []byte) []byte { return join(skippable, a, skippable, b, skippable) }, nil},
		{"the strongest setting", format.Zstd, func(a, b []byte) []byte { return join(a, b) }, []string{"--ultra", "-22"}},
		{"two streams", format.XZ, func(a, b []byte) []byte { return join(a, b) }, nil},
		{"padding", format.XZ, func(a, b []byte) []byte { return join(a, make([]byte, 8), b, make([]byte, 4)) }, nil},
		{"many blocks", format.XZ, func(a, b []byte) []byte { return join(a, b) }, []string{"--block-size=65536"}},
		{"the strongest setting", format.XZ, func(a, b []byte) []byte { return join(a, b) }, []string{"-9e"}},
		{"a filter for programs", format.XZ, func(a, b []byte) []byte { return join(a, b) }, []string{"--x86", "--lzma2=preset=1"}},
		{"SHA-256", format.XZ, func(a, b []byte) []byte { return join(a, b) }, []string{"-C", "sha256"}},
	} {
		t.Run(c.name+" "+c.what, func(t *testing.T) {
			packed := c.packed(mustPack(t, c.name, one, c.options...), mustPack(t, c.name, two, c.options...))
			for _, r := range []io.Reader{bytes.NewReader(packed), iotest.OneByteReader(bytes.NewReader(packed))} {
				if got, err := open(c.name, r); err != nil || !bytes.Equal(got, join(one, two)) {
					t.Errorf("error %v, equal %t", err, bytes.Equal(got, join(one, two)))
				}
			}
		})
	}
}

func TestDamagedFilesAreCorrupt(t *testing.T) {
	for name := range tools {
		good := mustPack(t, name, content(1, 300<<10))
		for what, c := range map[string]struct {
			file []byte
			says string
		}{
			"cut in the middle":    {good[:len(good)/2], "truncated"},
			"cut by one byte":      {good[:len(good)-1], "truncated"},
			"cut in the header":    {good[:5], "truncated"},
			"cut in a second part": {join(good, good[:20]), "truncated"},
			"a flipped bit":        {join(good[:len(good)/2], []byte{good[len(good)/2] ^ 4}, good[len(good)/2+1:]), "damaged"},
			"a wrong checksum":     {join(good[:len(good)-9], []byte{good[len(good)-9] ^ 1}, good[len(good)-8:]), ""},
		} {
			_, err := open(name, bytes.NewReader(c.file))
			if what == "a wrong checksum" && name != format.GZip && err == nil {
				continue // that byte is no checksum there
			}
			if !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s %s: got %v", name, what, err)
			}
		}
	}
	for _, name := range []string{format.XZ, format.Zstd} {
		if _, err := open(name, bytes.NewReader(join(mustPack(t, name, []byte("x")), []byte("garbage")))); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%s with garbage behind: got %v", name, err)
		}
	}
}

func TestTooLargeWindowsAreRefused(t *testing.T) {
	// The dictionary of 1.5 GiB, and the window of 1 GiB, that these headers ask for are never made.
	for name, options := range map[string][]string{format.XZ: {"--lzma2=preset=0,dict=1536MiB"}, format.Zstd: {"--long=30"}} {
		packed := mustPack(t, name, content(1, 1<<20), options...)
		if _, err := open(name, bytes.NewReader(packed)); !backingimage.Is(err, backingimage.Unsupported) || !strings.Contains(err.Error(), "128 MiB") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestTheReadersOwnErrorsPass(t *testing.T) {
	want := errors.New("disk on fire")
	for name := range tools {
		half := mustPack(t, name, content(1, 300<<10))[:60<<10]
		_, err := open(name, io.MultiReader(bytes.NewReader(half), iotest.ErrReader(want)))
		if !errors.Is(err, want) || backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestZstdTellsTheSizeInside(t *testing.T) {
	p := content(1, 300<<10)
	if got := unpack.Size(format.Zstd, mustPack(t, format.Zstd, p, "--stream-size=307200")); got != 300<<10 {
		t.Errorf("got %d", got)
	}
	for name := range tools {
		if got := unpack.Size(name, mustPack(t, name, p)); got != -1 {
			t.Errorf("%s: got %d", name, got)
		}
	}
	if got := unpack.Size(format.Zstd, skippable); got != -1 {
		t.Errorf("a skippable frame: got %d", got)
	}
}
