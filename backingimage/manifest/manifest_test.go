package manifest_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/zeebo/blake3"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
)

// pattern is n bytes that anyone can make again: the i-th is i modulo 251.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i % 251)
	}
	return p
}

// build makes the manifest of a content, its chunks in a random order, from several goroutines.
func build(content []byte) *manifest.Manifest {
	var b manifest.Builder
	var wg sync.WaitGroup
	for _, i := range rand.Perm((len(content) + manifest.ChunkBytes - 1) / manifest.ChunkBytes) {
		wg.Go(func() {
			b.Add(int64(i), content[i*manifest.ChunkBytes:min((i+1)*manifest.ChunkBytes, len(content))])
		})
	}
	wg.Wait()
	return b.Manifest(int64(len(content)))
}

// TestContentDigestIsStableForEver has golden values: they are in users' objects, and may never change.
func TestContentDigestIsStableForEver(t *testing.T) {
	holed := pattern(5 * manifest.ChunkBytes)
	clear(holed[manifest.ChunkBytes : 3*manifest.ChunkBytes])
	for _, c := range []struct {
		name    string
		content []byte
		digest  string
	}{
		{"nothing", nil, "7c7644cd19c862b7b67385ade53ba5affd03c05de423d420f070642d4c713172"},
		{"one sector of zeros", make([]byte, 512), "e99e989f4a6024af2993ec1edecb2fc46f96112c2489f2515e81c114410e47f9"},
		{"pattern of one chunk", pattern(manifest.ChunkBytes), "8472f295afcfb70c925cb2838baf0a1e3471d7af8d442497d4f8ff946e1b39df"},
		{"pattern of two and a half chunks", pattern(5 << 20), "aa36d5ca52960ee17b47d43e239cb6997383e869432edd574622c4d26d86fe98"},
		{"pattern with zeros between", holed, "fefc61123b8ba54fc548e8965b923387742ad8a1e494b76894e6e705164b18b5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := build(c.content).ContentDigest(); got != c.digest {
				t.Errorf("content digest is %s", got)
			}
			if got := byDefinition(c.content); got != c.digest {
				t.Errorf("by the definition it would be %s", got)
			}
		})
	}
}

// byDefinition computes a content digest as the package comment says, with nothing of the package.
func byDefinition(content []byte) string {
	text := []byte("plinth content 1")
	text = binary.LittleEndian.AppendUint64(text, uint64(len(content)))
	text = binary.LittleEndian.AppendUint64(text, 2097152)
	for at := 0; at < len(content); at += 2097152 {
		chunk := content[at:min(at+2097152, len(content))]
		var digest [32]byte
		if bytes.Count(chunk, []byte{0}) != len(chunk) {
			digest = blake3.Sum256(chunk)
		}
		text = append(text, digest[:]...)
	}
	sum := blake3.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func TestHolesAndZerosAreTheSameContent(t *testing.T) {
	content := pattern(7 << 20)
	clear(content[2<<20 : 6<<20])
	var holes manifest.Builder
	holes.Add(3, content[6<<20:])
	holes.Add(0, content[:2<<20])
	if build(content).ContentDigest() != holes.Manifest(7<<20).ContentDigest() {
		t.Error("their digests differ")
	}
}

func TestParseReadsWhatEncodeWrote(t *testing.T) {
	for _, n := range []int{0, 1, 512, manifest.ChunkBytes, 9*manifest.ChunkBytes + 5} {
		content := pattern(n)
		clear(content[n/4 : n/2])
		m := build(content)
		got, err := manifest.Parse(m.Encode())
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if got.Bytes() != m.Bytes() || got.ContentDigest() != m.ContentDigest() || !bytes.Equal(got.Encode(), m.Encode()) {
			t.Errorf("%d bytes: got %v, want %v", n, got, m)
		}
	}
}

func TestAnEmptyTebibyteCostsNothing(t *testing.T) {
	var b manifest.Builder
	b.Add(1<<19-1, []byte{1})
	m := b.Manifest(1 << 40)
	if n := len(m.Encode()); n > 100<<10 {
		t.Errorf("its manifest has %d bytes", n)
	}
}

func TestParseRefusesWhatIsDamaged(t *testing.T) {
	good := build(pattern(9 * manifest.ChunkBytes)).Encode()
	for at := range good {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if _, err := manifest.Parse(bad); !backingimage.Is(err, backingimage.Corrupt) {
			t.Fatalf("byte %d flipped: %v", at, err)
		}
		if _, err := manifest.Parse(good[:at]); !backingimage.Is(err, backingimage.Corrupt) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	}
}

// sealed puts a right checksum behind whatever is in front of it.
func sealed(body []byte) []byte {
	sum := blake3.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

func TestParseRefusesWhatContradictsItself(t *testing.T) {
	good := build(pattern(3 * manifest.ChunkBytes)).Encode()
	body := good[:len(good)-32]
	for name, change := range map[string]func([]byte) []byte{
		"size that has other chunks": func(b []byte) []byte { b[8] = 1; b[9] = 0; b[10] = 0; return b },
		"size beyond all":            func(b []byte) []byte { b[15] = 0x7f; return b },
		"negative size":              func(b []byte) []byte { b[15] = 0x80; return b },
		"other chunk size":           func(b []byte) []byte { b[16] = 1; return b },
		"bits beyond the end":        func(b []byte) []byte { b[24] |= 0x80; return append(b, make([]byte, 32)...) },
		"digest of zeros":            func(b []byte) []byte { clear(b[25:57]); return b },
		"a digest too many":          func(b []byte) []byte { return append(b, make([]byte, 32)...) },
		"a digest too few":           func(b []byte) []byte { return b[:len(b)-32] },
	} {
		if _, err := manifest.Parse(sealed(change(bytes.Clone(body)))); !backingimage.Is(err, backingimage.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParse: nothing makes Parse panic or take memory that its input does not account for, and what it accepts is
// exactly what Encode gives for it.
func FuzzParse(f *testing.F) {
	for _, n := range []int{0, 512, 3*manifest.ChunkBytes + 512} {
		encoded := build(pattern(n)).Encode()
		f.Add(encoded[:len(encoded)-32])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		file := sealed(body)
		m, err := manifest.Parse(file)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Encode(), file) {
			t.Errorf("%v is encoded otherwise than it was", m)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	chunk := pattern(manifest.ChunkBytes)
	b.SetBytes(int64(len(chunk)))
	var builder manifest.Builder
	for b.Loop() {
		builder.Add(0, chunk)
	}
}

func ExampleManifest_ContentDigest() {
	var b manifest.Builder
	b.Add(0, []byte("hello"))
	fmt.Println(b.Manifest(5).ContentDigest())
	// Output: 8e9fa9453ff3e77f00f6c832fccaadfda67bbe6039e8ac1f61f2234a93d71549
}
