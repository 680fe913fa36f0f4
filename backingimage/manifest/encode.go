package manifest

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"github.com/zeebo/blake3"

	"plinth.dev/plinth/backingimage"
)

const (
	magic       = "PLNTMAN1"
	headerBytes = len(magic) + 8 + 8
	sumBytes    = 32
)

// Encode returns the file form of the manifest.
func (m *Manifest) Encode() []byte {
	out := append([]byte(nil), magic...)
	out = binary.LittleEndian.AppendUint64(out, uint64(m.bytes))
	out = binary.LittleEndian.AppendUint64(out, ChunkBytes)
	out = append(out, m.Data()...)
	for i := range m.Chunks() {
		if d := m.Digest(i); !d.IsZero() {
			out = append(out, d[:]...)
		}
	}
	sum := blake3.Sum256(out)
	return append(out, sum[:]...)
}

// Parse reads what Encode wrote. Anything else is Corrupt; nothing panics, and nothing is allocated for what is not
// there.
func Parse(file []byte) (*Manifest, error) {
	bytes, err := parseHeader(file)
	if err != nil {
		return nil, err
	}
	bitmap, list, err := split(file[headerBytes:len(file)-sumBytes], chunks(bytes))
	if err != nil {
		return nil, err
	}
	m := &Manifest{bytes: bytes}
	for i := range m.Chunks() {
		if bitmap[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		d := Digest(list[:len(Digest{})])
		if d.IsZero() {
			return nil, corrupt("names the digest of chunk %d as zero although the chunk is not", i)
		}
		m.digests.set(i, d)
		list = list[len(Digest{}):]
	}
	return m, nil
}

// parseHeader checks all that does not depend on the chunks and returns the content's size.
func parseHeader(file []byte) (int64, error) {
	if len(file) < headerBytes+sumBytes || string(file[:len(magic)]) != magic {
		return 0, corrupt("does not begin as one")
	}
	body := file[:len(file)-sumBytes]
	if sum := blake3.Sum256(body); !bytes.Equal(sum[:], file[len(body):]) {
		return 0, corrupt("does not agree with its own checksum")
	}
	size := int64(binary.LittleEndian.Uint64(file[len(magic):]))
	if size < 0 || size > 1<<62 {
		return 0, corrupt("is of a content of %d bytes", size)
	}
	if chunk := binary.LittleEndian.Uint64(file[len(magic)+8:]); chunk != ChunkBytes {
		return 0, corrupt("has chunks of %d bytes, not %d", chunk, ChunkBytes)
	}
	return size, nil
}

// split parts a manifest's middle into its bitmap and its digests, which must fit each other exactly.
func split(middle []byte, chunks int64) (bitmap, list []byte, err error) {
	if int64(len(middle)) < (chunks+7)/8 {
		return nil, nil, corrupt("is too short for %d chunks", chunks)
	}
	bitmap, list = middle[:(chunks+7)/8], middle[(chunks+7)/8:]
	count := 0
	for _, b := range bitmap {
		count += bits.OnesCount8(b)
	}
	if len(list) != count*len(Digest{}) {
		return nil, nil, corrupt("lists %d chunks and has %d bytes of digests", count, len(list))
	}
	if rest := chunks % 8; rest != 0 && bitmap[len(bitmap)-1]>>rest != 0 {
		return nil, nil, corrupt("lists chunks beyond its end")
	}
	return bitmap, list, nil
}

func corrupt(format string, args ...any) error {
	return backingimage.Errorf(backingimage.Corrupt, "the manifest "+format+"; the copy has to be made anew", args...)
}
