package backup

import (
	"context"
	"io"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// ImageSource is the image of a backup, as a source of an image's bytes: a raw file, which is read in order with blocks on their way ahead of
// the reader.
type ImageSource struct {
	repository *Repository
	manifest   *Manifest
	width      int
}

var _ source.Source = (*ImageSource)(nil)

// Image is the source of a backup's image; concurrency is how many blocks are on their way at once, 0 for the repository's. Invalid when the backup
// has none; Corrupt when its pages are not those of the content digest that it says.
func (r *Repository) Image(ctx context.Context, m *Manifest, concurrency int) (*ImageSource, error) {
	if m.Image == nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "the backup %s in %s is of a volume that began without an image", m.ID, r.store)
	}
	digest, err := r.ContentDigest(ctx, &m.Image.Content)
	if err != nil {
		return nil, err
	}
	if digest != "" && digest != m.Image.ContentDigest {
		return nil, backingimage.Errorf(backingimage.Corrupt, "%s%s in %s: the pages of the image have the content digest %s, not %s", backupsFolder, m.ID, r.store, digest, m.Image.ContentDigest)
	}
	if concurrency <= 0 {
		concurrency = r.width
	}
	return &ImageSource{repository: r, manifest: m, width: concurrency}, nil
}

// String implements source.Source.
func (s *ImageSource) String() string {
	return "image " + s.manifest.Image.Name + " of backup " + s.manifest.ID + " in " + s.repository.String()
}

// Identity implements source.Source: the same content is the same source, whichever backup has it.
func (s *ImageSource) Identity() string { return s.manifest.Image.ContentDigest }

// Open implements source.Source.
func (s *ImageSource) Open(ctx context.Context, offset int64, validator string) (*source.Body, error) {
	c := &s.manifest.Image.Content
	if validator != "" && validator != s.Identity() || offset > c.Bytes {
		offset = 0
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &ahead{ctx: ctx, cancel: cancel, blocks: make(chan chan block, s.width), skip: offset % BlockBytes}
	go b.plan(ctx, s.repository, c, offset/BlockBytes)
	return &source.Body{ReadCloser: b, Offset: offset, Bytes: c.Bytes, Validator: s.Identity()}, nil
}

// ahead reads blocks in order. It implements io.ReadCloser.
type ahead struct {
	ctx    context.Context
	cancel context.CancelFunc
	blocks chan chan block // in order; each gives one block
	skip   int64           // bytes of the first block
	rest   []byte
	err    error
}

// block is a content, or why there is none.
type block struct {
	content []byte
	err     error
}

// plan has blocks brought, as many at once as the channel holds.
func (b *ahead) plan(ctx context.Context, r *Repository, c *Content, first int64) {
	defer close(b.blocks)
	var p *page
	for i := first; i < c.Blocks(); i++ {
		future := make(chan block, 1)
		if p == nil || i%PageBlocks == 0 {
			var err error
			if p, err = r.page(ctx, c, i/PageBlocks); err != nil {
				future <- block{err: err}
				select {
				case b.blocks <- future:
				case <-ctx.Done():
				}
				return
			}
		}
		select {
		case b.blocks <- future:
		case <-ctx.Done():
			return
		}
		id, _ := p.entry(int(i % PageBlocks))
		_, length := c.Span(i)
		if id.IsZero() {
			future <- block{content: zeroBlock[:length]}
			continue
		}
		go func() {
			content, err := r.fetch(ctx, kindBlock, id, nil)
			if err == nil && int64(len(content)) != length {
				err = corrupt("%s in %s has %d bytes, not %d", nameOf(kindBlock, id), r.store, len(content), length)
			}
			future <- block{content, err}
		}()
	}
}

// zeroBlock is what holes read as.
var zeroBlock [BlockBytes]byte

// Read implements io.Reader.
func (b *ahead) Read(p []byte) (int, error) {
	for len(b.rest) == 0 && b.err == nil {
		future, more := <-b.blocks
		if !more {
			if b.err = b.ctx.Err(); b.err == nil {
				b.err = io.EOF
			}
			break
		}
		next := <-future
		b.err = next.err
		if b.err == nil {
			b.rest, b.skip = next.content[min(b.skip, int64(len(next.content))):], 0
		}
	}
	if len(b.rest) == 0 {
		return 0, b.err
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (b *ahead) Close() error {
	b.cancel()
	return nil
}
