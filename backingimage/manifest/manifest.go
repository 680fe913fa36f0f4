// Package manifest says what the bytes of a copy must be, chunk by chunk.
//
// A chunk is 2 MiB of the raw content, the last one shorter where the size asks for it. A chunk's digest is the
// BLAKE3-256 of its bytes; a chunk of zeros has no digest but the name "zero", so that it costs nothing to store, to
// send or to check, and so that holes and written zeros are the same content. A Builder collects digests while data is
// written, in whatever order; a Manifest is the finished list.
//
// # Content digest
//
// The content digest is what identity means for images: two copies are of the same image exactly when it agrees. It
// is the BLAKE3-256, in lower-case hexadecimal, of these bytes:
//
//	"plinth content 1"            16 bytes of ASCII
//	size of the content in bytes  64 bits, little-endian
//	size of a chunk in bytes      64 bits, little-endian; always 2097152
//	each chunk's digest           32 bytes each, in order; 32 zero bytes for a chunk of zeros
//
// This definition is stable for ever: digests are stored in objects and compared across versions.
//
// # File
//
// Integers are little-endian.
//
//	"PLNTMAN1"                    8 bytes
//	size of the content in bytes  64 bits
//	size of a chunk in bytes      64 bits; always 2097152
//	which chunks are not zero     one bit a chunk, lowest bit first, padded with zero bits to a byte
//	digests of those chunks       32 bytes each, in order
//	BLAKE3-256 of all the above   32 bytes
package manifest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/zeebo/blake3"
)

// ChunkBytes is the size of a chunk, in bytes.
const ChunkBytes = 2 << 20

// Digest of a chunk. The zero Digest names a chunk of zeros.
type Digest [32]byte

// IsZero reports whether d names a chunk of zeros.
func (d Digest) IsZero() bool { return d == Digest{} }

// Sum returns the digest of a chunk's bytes.
func Sum(chunk []byte) Digest {
	if AllZero(chunk) {
		return Digest{}
	}
	return Digest(blake3.Sum256(chunk))
}

// Manifest is the digests of a whole content. It does not change.
type Manifest struct {
	bytes   int64
	digests digests
}

// Bytes is the size of the content.
func (m *Manifest) Bytes() int64 { return m.bytes }

// Chunks is the number of chunks.
func (m *Manifest) Chunks() int64 { return chunks(m.bytes) }

// Digest of a chunk, by its index from 0.
func (m *Manifest) Digest(index int64) Digest { return m.digests.at(index) }

// Span returns where a chunk lies in the content, in bytes.
func (m *Manifest) Span(index int64) (offset, length int64) {
	offset = index * ChunkBytes
	return offset, min(ChunkBytes, m.bytes-offset)
}

// ContentDigest is the digest over the whole content, as the package comment defines it.
func (m *Manifest) ContentDigest() string {
	h := blake3.New()
	h.WriteString("plinth content 1")
	var word [8]byte
	h.Write(binary.LittleEndian.AppendUint64(word[:0], uint64(m.bytes)))
	h.Write(binary.LittleEndian.AppendUint64(word[:0], ChunkBytes))
	for i := range pages(m.Chunks()) {
		h.Write(m.digests.page(i, m.Chunks()))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// String is for people.
func (m *Manifest) String() string {
	return fmt.Sprintf("%d bytes in %d chunks, content digest %s", m.bytes, m.Chunks(), m.ContentDigest())
}

func chunks(bytes int64) int64 { return (bytes + ChunkBytes - 1) / ChunkBytes }
