package backup

import (
	"context"
	"os"

	"plinth.dev/plinth/backingimage"
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

// RestoreImage is Restore of the image that a backup is of, or that its volume began as, whole and alone. Invalid when it has none; Corrupt, before
// anything is written, when the pages are not those of the content digest that the manifest says.
func (r *Repository) RestoreImage(ctx context.Context, m *Manifest, f *os.File, o Restoring) error {
	if m.Image == nil {
		return backingimage.Errorf(backingimage.Invalid, "the backup %s in %s is of a volume that began without an image", m.ID, r.store)
	}
	digest, err := r.ContentDigest(ctx, &m.Image.Content)
	if err != nil {
		return err
	}
	if digest != "" && digest != m.Image.ContentDigest {
		return backingimage.Errorf(backingimage.Corrupt, "%s%s in %s: the pages of the image have the content digest %s, not %s", backupsFolder, m.ID, r.store, digest, m.Image.ContentDigest)
	}
	o.WithImage = true
	return r.Restore(ctx, &Manifest{ID: m.ID, Image: m.Image}, f, o)
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
