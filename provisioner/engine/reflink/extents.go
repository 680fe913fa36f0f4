package reflink

import (
	"context"
	"fmt"
	"os"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

// Extents returns where a content differs from another, by where the two are on the disk: files that name the same block have the
// same bytes there. That holds for contents that nobody writes to, which are flushed before they are looked at.
func (e *Engine) Extents(ctx context.Context, of, base engine.From) ([]engine.Extent, error) {
	have, bytes, err := e.mapped(ctx, of)
	if err != nil {
		return nil, err
	}
	var known []mapping
	if base != (engine.From{}) {
		if known, _, err = e.mapped(ctx, base); err != nil {
			return nil, err
		}
	}
	return difference(have, known, bytes), nil
}

// Open opens a content that does not change.
func (e *Engine) Open(_ context.Context, of engine.From) (*os.File, error) {
	if err := e.checkContent(of); err != nil {
		return nil, err
	}
	if of.Volume != "" {
		return nil, backingimage.Errorf(backingimage.Invalid, "volume %s: its content does not stay what it is; take a snapshot of it, and ask for that", of.Volume)
	}
	return e.openSource(of)
}

// mapped returns where a content is on the disk, and its size.
func (e *Engine) mapped(ctx context.Context, of engine.From) ([]mapping, int64, error) {
	f, err := e.Open(ctx, of)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	list, err := fiemap(ctx, f, info.Size())
	if err != nil {
		return nil, 0, fmt.Errorf("find the extents of %s: %w", f.Name(), err)
	}
	return list, info.Size(), nil
}

// difference returns where two contents may differ within so many bytes. What neither maps is zeros in both.
func difference(a, b []mapping, bytes int64) []engine.Extent {
	var list []engine.Extent
	for at := int64(0); at < bytes; {
		inA, endA := within(&a, at, bytes)
		inB, endB := within(&b, at, bytes)
		end := min(endA, endB)
		if !same(inA, inB, at) {
			if last := len(list) - 1; last >= 0 && list[last].Offset+list[last].Bytes == at {
				list[last].Bytes += end - at
			} else {
				list = append(list, engine.Extent{Offset: at, Bytes: end - at})
			}
		}
		at = end
	}
	return list
}

// within returns the mapping that an offset is in, nil for a hole, and where that ends. What lies before is taken off the list.
func within(list *[]mapping, at, bytes int64) (*mapping, int64) {
	for len(*list) > 0 && (*list)[0].end() <= at {
		*list = (*list)[1:]
	}
	if len(*list) == 0 {
		return nil, bytes
	}
	first := &(*list)[0]
	if first.offset > at {
		return nil, min(first.offset, bytes)
	}
	return first, min(first.end(), bytes)
}

// same reports whether two contents surely have the same bytes from an offset on.
func same(a, b *mapping, at int64) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.known && b.known && a.physical+(at-a.offset) == b.physical+(at-b.offset)
}
