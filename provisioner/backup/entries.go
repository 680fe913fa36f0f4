package backup

import "context"

// wanted is a block that a restore has to bring: its content, or zeros when the ID is zero.
type wanted struct {
	id             ID
	offset, length int64 // in bytes; of zeros, any number of blocks
}

// joined gives on what it is given, neighbouring blocks of zeros as one: they are one hole, however large.
type joined struct {
	give  func(wanted) error
	zeros wanted // that are not given on yet; of no length when there are none
}

func (j *joined) add(w wanted) error {
	if w.id.IsZero() && j.zeros.length > 0 && w.offset == j.zeros.offset+j.zeros.length {
		j.zeros.length += w.length
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	if w.id.IsZero() {
		j.zeros = w
		return nil
	}
	return j.give(w)
}

func (j *joined) flush() error {
	w := j.zeros
	if w.length == 0 {
		return nil
	}
	j.zeros = wanted{}
	return j.give(w)
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
