package backup

import (
	"math/bits"
)

const (
	// PageBlocks is how many blocks a page lists: those of 1 GiB.
	PageBlocks   = 512
	bitmapBytes  = PageBlocks / 8
	maxPageBytes = bitmapBytes + PageBlocks*32
)

// page says of each block in a GiB what it is: what the base has there (no entry), zeros (an entry with the zero ID), or the block with
// the entry's ID. Where a content has no base, that is zeros too, and there are no entries with the zero ID.
type page struct {
	has [bitmapBytes]byte // one bit a block, lowest first
	ids [PageBlocks]ID
}

func (p *page) set(i int, id ID) {
	p.has[i/8] |= 1 << (i % 8)
	p.ids[i] = id
}

func (p *page) clear(i int) {
	p.has[i/8] &^= 1 << (i % 8)
	p.ids[i] = ID{}
}

// entry is a block's ID, and whether it has one.
func (p *page) entry(i int) (ID, bool) { return p.ids[i], p.has[i/8]&(1<<(i%8)) != 0 }

func (p *page) isEmpty() bool { return p.has == [bitmapBytes]byte{} }

// encode gives the bitmap and the IDs of the entries in order.
func (p *page) encode() []byte {
	out := append(make([]byte, 0, maxPageBytes), p.has[:]...)
	for i := range PageBlocks {
		if id, ok := p.entry(i); ok {
			out = append(out, id[:]...)
		}
	}
	return out
}

// parsePage reads what encode wrote. Corrupt.
func parsePage(content []byte) (*page, error) {
	if len(content) < bitmapBytes {
		return nil, corrupt("it is too short for a page")
	}
	p := &page{has: [bitmapBytes]byte(content)}
	entries := 0
	for _, eight := range p.has {
		entries += bits.OnesCount8(eight)
	}
	rest := content[bitmapBytes:]
	if len(rest) != entries*len(ID{}) {
		return nil, corrupt("it lists %d blocks and has %d bytes for them", entries, len(rest))
	}
	for i := range PageBlocks {
		if _, ok := p.entry(i); ok {
			p.ids[i], rest = ID(rest), rest[len(ID{}):]
		}
	}
	return p, nil
}
