package format

import (
	"bytes"
	stdflate "compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// mustDeflate compresses with the standard library.
func mustDeflate(tb testing.TB, p []byte, level int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := stdflate.NewWriter(&b, level)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// samples are data of every kind that encoders treat differently.
func samples() map[string][]byte {
	r := rand.NewChaCha8([32]byte{7})
	noise := make([]byte, 64<<10)
	r.Read(noise)
	text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog; "), 1400)
	skewed := make([]byte, 64<<10)
	for i := range skewed {
		skewed[i] = byte(rand.New(r).ExpFloat64() * 9)
	}
	mixed := append(bytes.Clone(text[:9000]), noise[:9000]...)
	return map[string][]byte{
		"noise": noise, "text": text, "skewed": skewed, "mixed": mixed, "zeros": make([]byte, 64<<10),
		"one byte": {42}, "pairs": bytes.Repeat([]byte{1, 2}, 5000), "runs": bytes.Repeat([]byte("aaaaaaaaab"), 3000),
	}
}

func TestDeflateAgreesWithTheStandardLibrary(t *testing.T) {
	d := new(deflate)
	for name, want := range samples() {
		for _, level := range []int{stdflate.HuffmanOnly, 0, 1, 6, 9} {
			packed := mustDeflate(t, want, level)
			got := make([]byte, len(want))
			for _, padding := range []int{0, 1, 511} {
				if err := d.decode(got, append(bytes.Clone(packed), make([]byte, padding)...)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s at level %d with %d bytes of padding: %v, equal %t", name, level, padding, err, bytes.Equal(got, want))
				}
			}
			if err := d.decode(make([]byte, len(want)+1), packed); err == nil {
				t.Errorf("%s at level %d: more came out than went in", name, level)
			}
			if len(want) > 1 {
				if err := d.decode(got, packed[:len(packed)/2]); err == nil {
					t.Errorf("%s at level %d: half of the data was enough", name, level)
				}
			}
		}
	}
}

// FuzzDeflate compares with the standard library: what it accepts we accept, with the same bytes, unless zlib, which qemu
// uses, refuses it; what we accept of the rest must be what it gave before it failed.
func FuzzDeflate(f *testing.F) {
	for _, p := range samples() {
		f.Add(mustDeflate(f, p, 6), 1000)
		f.Add(mustDeflate(f, p, 0), len(p))
	}
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if size < 1 || size > 1<<17 {
			return
		}
		want, got := make([]byte, size), make([]byte, size)
		n, theirs := io.ReadFull(stdflate.NewReader(bytes.NewReader(data)), want)
		ours := new(deflate).decode(got, data)
		if theirs == nil && ours != nil && !errors.Is(ours, errEndless) {
			t.Fatalf("refused: %v", ours)
		}
		if ours == nil && !bytes.Equal(got[:n], want[:n]) {
			t.Fatal("other bytes")
		}
	})
}

func BenchmarkDeflate(b *testing.B) {
	want := samples()["skewed"]
	packed := mustDeflate(b, want, 6)
	out := make([]byte, len(want))
	d := new(deflate)
	b.SetBytes(int64(len(want)))
	for b.Loop() {
		if err := d.decode(out, packed); err != nil {
			b.Fatal(err)
		}
	}
}
