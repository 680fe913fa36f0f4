package manifest

import (
	"sync"
)

// Builder collects digests of a content while it is written. It is safe for concurrent use, and chunks may come in any
// order. A chunk that never came is a chunk of zeros. Memory grows with the data, not with the size.
type Builder struct {
	mu      sync.Mutex
	digests digests
}

// Add computes the digest of a chunk and keeps it. Chunks have ChunkBytes each, the content's last one perhaps fewer.
func (b *Builder) Add(index int64, chunk []byte) Digest {
	d := Sum(chunk)
	b.Set(index, d)
	return d
}

// Set keeps a digest that was computed before.
func (b *Builder) Set(index int64, d Digest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.digests.set(index, d)
}

// Digest returns the digest that a chunk has so far.
func (b *Builder) Digest(index int64) Digest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.digests.at(index)
}

// Digests returns the digests of the chunks from first up to, but without, end.
func (b *Builder) Digests(first, end int64) []Digest {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Digest, 0, end-first)
	for i := first; i < end; i++ {
		list = append(list, b.digests.at(i))
	}
	return list
}

// Manifest finishes a content of this many bytes. The Builder must not be used afterwards.
func (b *Builder) Manifest(bytes int64) *Manifest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &Manifest{bytes: bytes, digests: b.digests}
}

// pageDigests is how many digests share a page: those of 1 GiB.
const pageDigests = 512

type page [pageDigests]Digest

// digests is a list that is sparse as images are: a page is made when a digest in it is set that is not zero.
type digests []*page

var zeroPage page

func pages(chunks int64) int64 { return (chunks + pageDigests - 1) / pageDigests }

func (d digests) at(index int64) Digest {
	if p := index / pageDigests; p < int64(len(d)) && d[p] != nil {
		return d[p][index%pageDigests]
	}
	return Digest{}
}

func (d *digests) set(index int64, value Digest) {
	p := index / pageDigests
	if value.IsZero() && (p >= int64(len(*d)) || (*d)[p] == nil) {
		return
	}
	for p >= int64(len(*d)) {
		*d = append(*d, nil)
	}
	if (*d)[p] == nil {
		(*d)[p] = new(page)
	}
	(*d)[p][index%pageDigests] = value
}

// page returns the bytes of one page's digests, as far as the content has so many chunks.
func (d digests) page(index, chunks int64) []byte {
	p := &zeroPage
	if index < int64(len(d)) && d[index] != nil {
		p = d[index]
	}
	count := min(pageDigests, chunks-index*pageDigests)
	bytes := make([]byte, 0, count*int64(len(Digest{})))
	for i := range count {
		bytes = append(bytes, p[i][:]...)
	}
	return bytes
}
