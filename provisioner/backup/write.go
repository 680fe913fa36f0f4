package backup

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
	"plinth.dev/plinth/provisioner/engine"
)

// Input is a content to be stored. Only what Changed covers is read, in whole blocks.
type Input struct {
	File  io.ReaderAt
	Bytes int64
	// Changed are the parts that may differ from Last where that is given, and else from what the content began as: an image, or
	// zeros. They are in order and do not overlap.
	Changed []engine.Extent
	// Last is a content that is stored and that this one differs from in what Changed covers alone; nil for none. Its pages must be
	// there: see HasPages.
	Last *Content
	// OverImage says that the content began as an image, so that zeros are not what an absent entry means.
	OverImage bool
	// Digests are what the blocks must be; nil for unknown. They save reading what the store has, in a repository that is not encrypted,
	// and what is read is compared with them.
	Digests *manifest.Manifest
}

// Progress of a Write or a restore.
type Progress struct {
	TotalBytes int64 // that will be gone through
	DoneBytes  int64
	Stats      Stats
}

// Write stores a content and returns its pages. report may be nil; it is called often, from any goroutine, and must not block.
func (s *Session) Write(ctx context.Context, in Input, report func(Progress)) (Content, error) {
	w := &writing{session: s, in: in, report: report, last: in.Last}
	w.content = Content{Bytes: in.Bytes, Pages: make([]ID, pagesOf(in.Bytes))}
	w.touched = touched(in)
	for _, run := range w.touched {
		w.total += run.length(in.Bytes)
	}
	if w.last == nil {
		w.last = &Content{}
	}
	group, ctx := parallel.WithContext(ctx)
	jobs := make(chan job)
	group.Go(func() error { defer close(jobs); return w.plan(ctx, jobs) })
	for range s.repository.width {
		group.Go(func() error { return w.work(ctx, jobs) })
	}
	err := group.Wait()
	return w.content, err
}

// run is blocks in a row: from first up to, but without, end.
type run struct{ first, end int64 }

func (r run) length(bytes int64) int64 { return min(r.end*BlockBytes, bytes) - r.first*BlockBytes }

// touched are the blocks that have to be read, in order.
func touched(in Input) []run {
	var runs []run
	add := func(offset, end int64) {
		next := run{offset / BlockBytes, (min(end, in.Bytes) + BlockBytes - 1) / BlockBytes}
		if n := len(runs); n > 0 && next.first <= runs[n-1].end {
			runs[n-1].end = max(runs[n-1].end, next.end)
		} else if next.first < next.end {
			runs = append(runs, next)
		}
	}
	partial := int64(-1) // where the shorter one of two contents ends within a block, which is another in each
	if in.Last != nil && in.Last.Bytes != in.Bytes && min(in.Last.Bytes, in.Bytes)%BlockBytes != 0 {
		partial = min(in.Last.Bytes, in.Bytes)
	}
	for _, e := range in.Changed {
		if partial >= 0 && e.Offset >= partial {
			add(partial-1, partial)
			partial = -1
		}
		if e.Bytes > 0 && e.Offset < in.Bytes {
			add(e.Offset, e.Offset+e.Bytes)
		}
	}
	if partial >= 0 && partial-1 < in.Bytes {
		add(partial-1, partial)
	}
	return runs
}

// writing is one Write.
type writing struct {
	session *Session
	in      Input
	last    *Content
	content Content
	touched []run
	report  func(Progress)

	total, done int64 // done is guarded by the session
}

// job is a block to be read, of a page that is being made.
type job struct {
	page  *making
	block int64
}

// making is a page while its blocks are being read.
type making struct {
	index int64
	mu    sync.Mutex
	page  page
	names []string // of the blocks that this session relies on
	left  atomic.Int64
}

// plan goes through the pages in order. One in which nothing changed is taken over as it is.
func (w *writing) plan(ctx context.Context, jobs chan<- job) error {
	runs := w.touched
	for index := range w.content.Pages {
		first, end := int64(index)*PageBlocks, min(int64(index+1)*PageBlocks, w.content.Blocks())
		var mine []int64
		for len(runs) > 0 && runs[0].first < end {
			for b := max(runs[0].first, first); b < min(runs[0].end, end); b++ {
				mine = append(mine, b)
			}
			if runs[0].end > end {
				break
			}
			runs = runs[1:]
		}
		if err := w.planPage(ctx, int64(index), mine, jobs); err != nil {
			return err
		}
	}
	return nil
}

func (w *writing) planPage(ctx context.Context, index int64, blocks []int64, jobs chan<- job) error {
	if len(blocks) == 0 && (index >= int64(len(w.last.Pages)) || w.last.Blocks() <= w.content.Blocks()) {
		if index < int64(len(w.last.Pages)) {
			w.content.Pages[index] = w.last.Pages[index]
		}
		return nil
	}
	last, err := w.session.repository.page(ctx, w.last, index)
	if err != nil {
		return err
	}
	m := &making{index: index, page: *last}
	for i := max(0, w.content.Blocks()-index*PageBlocks); i < PageBlocks; i++ {
		m.page.clear(int(i)) // the content was cut
	}
	m.left.Store(int64(len(blocks)) + 1)
	for _, b := range blocks {
		select {
		case jobs <- job{m, b}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w.finished(ctx, m)
}

// finished stores the page when the last of its blocks is done.
func (w *writing) finished(ctx context.Context, m *making) error {
	if m.left.Add(-1) > 0 {
		return nil
	}
	id, err := w.session.keepPage(ctx, &m.page, m.names)
	w.content.Pages[m.index] = id // each page has its own place
	return err
}

// work reads and stores blocks.
func (w *writing) work(ctx context.Context, jobs <-chan job) error {
	block := make([]byte, BlockBytes)
	buffer := make([]byte, 0, storedLimit(kindBlock)+BlockBytes/64) // what cannot be compressed grows before that is known
	for j := range jobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.block(ctx, j, block, buffer); err != nil {
			return err
		}
		if err := w.finished(ctx, j.page); err != nil {
			return err
		}
	}
	return nil
}

// block stores one block and notes it in its page.
func (w *writing) block(ctx context.Context, j job, block, buffer []byte) error {
	offset, length := w.content.Span(j.block)
	id, name, err := w.known(ctx, j.block)
	if err == nil && name == "" {
		id, name, err = w.read(ctx, block[:length], offset, buffer)
	}
	if err != nil {
		return err
	}
	j.page.mu.Lock()
	if i := int(j.block % PageBlocks); id.IsZero() && !w.in.OverImage {
		j.page.page.clear(i)
	} else {
		j.page.page.set(i, id)
	}
	if !id.IsZero() {
		j.page.names = append(j.page.names, name)
	}
	j.page.mu.Unlock()
	w.session.count(func(s *Stats) {
		w.done += length
		if !id.IsZero() {
			s.StoredBytes += length
		}
		if w.report != nil {
			w.report(Progress{TotalBytes: w.total, DoneBytes: w.done, Stats: *s})
		}
	})
	return nil
}

// zeros is the name of what is not stored.
const zeros = "zeros"

// known finds a block in the store by the digest that it is known to have; "" when it has to be read.
func (w *writing) known(ctx context.Context, block int64) (ID, string, error) {
	if w.in.Digests == nil || w.session.repository.Encrypted() {
		return ID{}, "", nil
	}
	id := ID(w.in.Digests.Digest(block))
	if id.IsZero() {
		return id, zeros, nil
	}
	if err := w.session.fresh(ctx); err != nil {
		return id, "", err
	}
	name, err := w.session.find(ctx, kindBlock, id)
	return id, name, err
}

func (w *writing) read(ctx context.Context, block []byte, offset int64, buffer []byte) (ID, string, error) {
	if n, err := w.in.File.ReadAt(block, offset); n < len(block) {
		return ID{}, "", fmt.Errorf("read block at byte %d: %w", offset, err)
	}
	w.session.count(func(s *Stats) { s.ReadBytes += int64(len(block)) })
	if d := w.in.Digests; d != nil && manifest.Sum(block) != d.Digest(offset/BlockBytes) {
		return ID{}, "", backingimage.Errorf(backingimage.Corrupt, "the chunk at byte %d is not what its digest says: the copy is damaged; it is not backed up before it is repaired", offset)
	}
	if manifest.AllZero(block) {
		return ID{}, zeros, nil
	}
	id := w.session.repository.keys.sum(block)
	name, err := w.session.keep(ctx, kindBlock, id, block, buffer)
	return id, name, err
}

// count changes the statistics.
func (s *Session) count(change func(*Stats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.stats)
}
