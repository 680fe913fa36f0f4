package backup

import (
	"context"

	"plinth.dev/plinth/backingimage"
)

// Content is what a backup keeps of a volume or an image.
type Content struct {
	// Bytes is its size.
	Bytes int64 `json:"bytes"`
	// Pages are the pages of its GiBs in order; the zero ID is a page without entries.
	Pages []ID `json:"pages"`
}

// Blocks is how many blocks the content has.
func (c *Content) Blocks() int64 { return (c.Bytes + BlockBytes - 1) / BlockBytes }

// Span is where a block lies, in bytes.
func (c *Content) Span(block int64) (offset, length int64) {
	offset = block * BlockBytes
	return offset, min(BlockBytes, c.Bytes-offset)
}

// maxBytes is more than any volume has: 8 EiB less one page.
const maxBytes = 1<<63 - 1 - PageBlocks*BlockBytes

// check refuses sizes that do not fit each other. Corrupt.
func (c *Content) check() error {
	if c.Bytes < 0 || c.Bytes > maxBytes {
		return corrupt("it is of a content of %d bytes", c.Bytes)
	}
	if int64(len(c.Pages)) != pagesOf(c.Bytes) {
		return corrupt("it has %d pages for %d bytes", len(c.Pages), c.Bytes)
	}
	return nil
}

func pagesOf(bytes int64) int64 {
	const pageBytes = PageBlocks * BlockBytes
	return (bytes + pageBytes - 1) / pageBytes
}

// page reads a content's page by its index; one without entries when the content has none there. Corrupt.
func (r *Repository) page(ctx context.Context, c *Content, index int64) (*page, error) {
	if index >= int64(len(c.Pages)) || c.Pages[index].IsZero() {
		return &page{}, nil
	}
	p, err := r.readPage(ctx, c.Pages[index])
	if err != nil {
		return nil, err
	}
	for i := max(0, c.Blocks()-index*PageBlocks); i < PageBlocks; i++ {
		if _, ok := p.entry(int(i)); ok {
			return nil, backingimage.Errorf(backingimage.Corrupt, "%s in %s: it lists blocks beyond the content's end", nameOf(kindPage, c.Pages[index]), r.store)
		}
	}
	return p, nil
}

// readPage reads a page by its ID. Corrupt.
func (r *Repository) readPage(ctx context.Context, id ID) (*page, error) {
	content, err := r.fetch(ctx, kindPage, id, nil)
	if err != nil {
		return nil, err
	}
	p, err := parsePage(content)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Corrupt, "%s in %s: %w", nameOf(kindPage, id), r.store, err)
	}
	return p, nil
}
