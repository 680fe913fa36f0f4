package backup

import (
	"context"

	"plinth.dev/plinth/backingimage/manifest"
)

// FindImage returns the pages that an image's content has in the repository, if anyone knows them; nil when nobody does. They may not be
// there: see Session.HasPages. digests are the image's, nil when they are not known.
func (r *Repository) FindImage(ctx context.Context, contentDigest string, digests *manifest.Manifest) (*Content, error) {
	if digests != nil && !r.Encrypted() {
		return r.contentOf(digests), nil
	}
	list, err := r.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		if l.Manifest != nil && l.Manifest.Image != nil && l.Manifest.Image.ContentDigest == contentDigest {
			return &l.Manifest.Image.Content, nil
		}
	}
	return nil, nil
}

// contentOf are the pages of a content whose blocks' digests are known, where those are the blocks' names.
func (r *Repository) contentOf(digests *manifest.Manifest) *Content {
	c := &Content{Bytes: digests.Bytes(), Pages: make([]ID, pagesOf(digests.Bytes()))}
	for index := range c.Pages {
		var p page
		for i := range min(PageBlocks, c.Blocks()-int64(index)*PageBlocks) {
			if d := digests.Digest(int64(index)*PageBlocks + i); !d.IsZero() {
				p.set(int(i), ID(d))
			}
		}
		if !p.isEmpty() {
			c.Pages[index] = r.keys.sum(p.encode())
		}
	}
	return c
}

// ContentDigest of an image whose backup this is, computed from the pages, where the blocks' names tell it; "" in an encrypted repository.
// Corrupt.
func (r *Repository) ContentDigest(ctx context.Context, c *Content) (string, error) {
	if r.Encrypted() {
		return "", nil
	}
	var digests manifest.Builder
	for index := range pagesOf(c.Bytes) {
		p, err := r.page(ctx, c, index)
		if err != nil {
			return "", err
		}
		for i := range PageBlocks {
			if id, has := p.entry(i); has {
				digests.Set(index*PageBlocks+int64(i), manifest.Digest(id))
			}
		}
	}
	return digests.Manifest(c.Bytes).ContentDigest(), nil
}
