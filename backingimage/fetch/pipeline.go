package fetch

import (
	"context"
	"sync/atomic"

	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// sourceBlocks are the blocks between the network and the disk. With manifest.ChunkBytes each they are most of the memory
// that a fetch takes.
const sourceBlocks = 8

// block is a chunk of the source file on its way through the pipeline. All are full but the last one.
type block struct {
	index  int64
	length int
	buffer [manifest.ChunkBytes]byte
	users  atomic.Int32 // stages that are not done with it
}

func (b *block) data() []byte  { return b.buffer[:b.length] }
func (b *block) offset() int64 { return b.index * manifest.ChunkBytes }

// item is what stages are given, in order: a block, or a mark.
type item struct {
	block *block
	mark  *mark
}

// mark asks every stage to note its state between two blocks. When all have, the mark is complete.
type mark struct {
	position
	stages atomic.Int32  // that have not noted yet
	states []any         // by stage
	done   chan struct{} // closed when what is made of the complete mark is made
}

// position is where in which version of the source file a mark is.
type position struct {
	offset    int64
	bytes     int64 // of the whole file, -1 while unknown
	validator string
}

// stage works on blocks in order. note returns its state after the blocks that it was given.
type stage interface {
	work(*block) error
	note(offset int64) (state any, err error)
}

// pipeline gives blocks to stages, each in a goroutine of its own.
type pipeline struct {
	group    *parallel.Group
	free     chan *block
	queues   []chan item
	complete func(*mark) error // called, in a goroutine of its own, with each mark that is complete
}

// newPipeline recycles so many blocks.
func newPipeline(ctx context.Context, blocks int, complete func(*mark) error, stages ...stage) (*pipeline, context.Context) {
	group, ctx := parallel.WithContext(ctx)
	p := &pipeline{group: group, free: make(chan *block, blocks), complete: complete}
	for range blocks {
		p.free <- new(block)
	}
	for i, s := range stages {
		queue := make(chan item, blocks+1)
		p.queues = append(p.queues, queue)
		group.Go(func() error { return p.drain(ctx, i, s, queue) })
	}
	return p, ctx
}

// take returns a block that no stage works on.
func (p *pipeline) take(ctx context.Context) (*block, error) {
	select {
	case b := <-p.free:
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// give sends a block to all stages.
func (p *pipeline) give(ctx context.Context, b *block) error {
	b.users.Store(int32(len(p.queues)))
	return p.send(ctx, item{block: b})
}

// mark sends a mark to all stages.
func (p *pipeline) mark(ctx context.Context, at position) (*mark, error) {
	m := &mark{position: at, states: make([]any, len(p.queues)), done: make(chan struct{})}
	m.stages.Store(int32(len(p.queues)))
	return m, p.send(ctx, item{mark: m})
}

func (p *pipeline) send(ctx context.Context, it item) error {
	for _, queue := range p.queues {
		select {
		case queue <- it:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// end tells the stages that no more comes.
func (p *pipeline) end() {
	for _, queue := range p.queues {
		close(queue)
	}
}

func (p *pipeline) drain(ctx context.Context, index int, s stage, queue <-chan item) error {
	for it := range queue {
		if err := ctx.Err(); err != nil {
			return err
		}
		if it.mark != nil {
			if err := p.note(index, s, it.mark); err != nil {
				return err
			}
			continue
		}
		if err := s.work(it.block); err != nil {
			return err
		}
		if it.block.users.Add(-1) == 0 {
			p.free <- it.block
		}
	}
	return nil
}

func (p *pipeline) note(index int, s stage, m *mark) error {
	state, err := s.note(m.offset)
	if err != nil {
		return err
	}
	m.states[index] = state
	if m.stages.Add(-1) == 0 {
		p.group.Go(func() error {
			defer close(m.done)
			return p.complete(m)
		})
	}
	return nil
}
