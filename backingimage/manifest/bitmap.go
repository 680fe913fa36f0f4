package manifest

import "math/bits"

// Bitmap has a bit for each chunk of a content, lowest bit first, padded with zero bits to a byte.
type Bitmap []byte

// NewBitmap makes a Bitmap for so many chunks, none of them set.
func NewBitmap(chunks int64) Bitmap { return make(Bitmap, (chunks+7)/8) }

// Has reports whether a chunk's bit is set; it is not beyond the bitmap's end.
func (b Bitmap) Has(index int64) bool {
	return index/8 < int64(len(b)) && b[index/8]&(1<<(index%8)) != 0
}

// Set sets a chunk's bit.
func (b Bitmap) Set(index int64) { b[index/8] |= 1 << (index % 8) }

// Clear clears a chunk's bit.
func (b Bitmap) Clear(index int64) { b[index/8] &^= 1 << (index % 8) }

// Count is how many bits are set.
func (b Bitmap) Count() int64 {
	count := 0
	for _, eight := range b {
		count += bits.OnesCount8(eight)
	}
	return int64(count)
}

// Data has the chunks that are not zero.
func (m *Manifest) Data() Bitmap {
	set := NewBitmap(m.Chunks())
	for i := range m.Chunks() {
		if !m.Digest(i).IsZero() {
			set.Set(i)
		}
	}
	return set
}

// DataBytes is the size of the chunks that are not zero, in bytes.
func (m *Manifest) DataBytes() int64 {
	var bytes int64
	for i := range m.Chunks() {
		if !m.Digest(i).IsZero() {
			_, length := m.Span(i)
			bytes += length
		}
	}
	return bytes
}
