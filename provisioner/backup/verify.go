package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/parallel"
)

// Verified is what Verify found.
type Verified struct {
	Blocks, Bytes int64    // that were read, before compression
	Damage        []string // an object a line, and what is wrong with it; maxDamage at most
	Damaged       int64    // objects
}

// maxDamage is how much of what is damaged is told in full.
const maxDamage = 20

// Err is nil when nothing is damaged, and Corrupt otherwise, with what is.
func (v Verified) Err() error {
	if v.Damaged == 0 {
		return nil
	}
	var errs []error
	for _, text := range v.Damage {
		errs = append(errs, errors.New(text))
	}
	if more := v.Damaged - int64(len(v.Damage)); more > 0 {
		errs = append(errs, fmt.Errorf("and %d more", more))
	}
	return backingimage.Errorf(backingimage.Corrupt, "%d objects of the backup are damaged or missing: %w; a full backup (--full) puts them back as far as the volume and its image still have the same content", v.Damaged, errors.Join(errs...))
}

// Verify reads everything back that a backup needs, and proves it. What is damaged is in the result; an error says that it could not
// be found out.
func (r *Repository) Verify(ctx context.Context, m *Manifest, report func(Progress)) (Verified, error) {
	v := &verifying{repository: r, report: report, total: m.Bytes()}
	group, ctx := parallel.WithContext(ctx)
	jobs := make(chan wanted)
	group.Go(func() error {
		defer close(jobs)
		return v.plan(ctx, m, jobs)
	})
	for range r.width {
		group.Go(func() error { return v.work(ctx, jobs) })
	}
	err := group.Wait()
	return v.found, err
}

type verifying struct {
	repository *Repository
	report     func(Progress)
	mu         sync.Mutex
	found      Verified
	total      int64
	done       int64
}

// plan gives the blocks of all pages of all contents.
func (v *verifying) plan(ctx context.Context, m *Manifest, jobs chan<- wanted) error {
	for _, c := range m.contents() {
		for index := range pagesOf(c.Bytes) {
			p, err := v.repository.page(ctx, c, index)
			if err := v.note(err); err != nil {
				return err
			}
			if err != nil {
				continue
			}
			for i := range min(PageBlocks, c.Blocks()-index*PageBlocks) {
				id, _ := p.entry(int(i))
				if id.IsZero() {
					continue
				}
				w := wanted{id: id}
				w.offset, w.length = c.Span(index*PageBlocks + i)
				select {
				case jobs <- w:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	}
	return nil
}

func (v *verifying) work(ctx context.Context, jobs <-chan wanted) error {
	buffer := make([]byte, 0, BlockBytes)
	for w := range jobs {
		content, err := v.repository.fetch(ctx, kindBlock, w.id, buffer)
		if err == nil && int64(len(content)) != w.length {
			err = corrupt("%s in %s has %d bytes, not %d", nameOf(kindBlock, w.id), v.repository, len(content), w.length)
		}
		if err := v.note(err); err != nil {
			return err
		}
		v.mu.Lock()
		v.found.Blocks++
		v.found.Bytes += w.length
		if v.done += w.length; v.report != nil {
			v.report(Progress{TotalBytes: v.total, DoneBytes: min(v.done, v.total)})
		}
		v.mu.Unlock()
	}
	return nil
}

// note keeps damage and returns any other error.
func (v *verifying) note(err error) error {
	if !backingimage.Is(err, backingimage.Corrupt) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.found.Damaged++; len(v.found.Damage) < maxDamage {
		v.found.Damage = append(v.found.Damage, err.Error())
	}
	return nil
}
