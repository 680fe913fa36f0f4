package backup

import "context"

// wanted is a block that a restore has to bring: its content, or zeros when the ID is zero.
type wanted struct {
	id             ID
	offset, length int64 // in bytes
}

// entries gives what a backup's content is made of, in order. With the image it is all that is not zeros, or with them if zeros are
// wanted too; without, all that may differ from the image. skipped is called with the bytes that need nothing.
func (r *Repository) entries(ctx context.Context, m *Manifest, withImage, zeros bool, each func(wanted) error, skipped func(bytes int64)) error {
	own, under := &m.Content, &Content{}
	if m.Image != nil && withImage {
		under = &m.Image.Content
	}
	if m.Volume == nil {
		own, under = under, &Content{}
	}
	for index := range pagesOf(own.Bytes) {
		over, err := r.page(ctx, own, index)
		if err != nil {
			return err
		}
		base, err := r.page(ctx, under, index)
		if err != nil {
			return err
		}
		for i := range min(PageBlocks, own.Blocks()-index*PageBlocks) {
			block := index*PageBlocks + i
			w := wanted{}
			w.offset, w.length = own.Span(block)
			id, has := over.entry(int(i))
			if !has && withImage {
				if id, has = base.entry(int(i)); has {
					_, w.length = under.Span(block) // the image may end within the block
				}
				if w.length > own.Bytes-w.offset {
					return corrupt("the image is larger than the volume")
				}
			}
			needed := has
			if withImage {
				needed = zeros || !id.IsZero()
			}
			if w.id = id; !needed {
				_, length := own.Span(block)
				skipped(length)
				continue
			}
			if err := each(w); err != nil {
				return err
			}
		}
	}
	return nil
}
