package fetch

import (
	"context"
	"io"
	"time"

	"plinth.dev/plinth/backingimage"
)

// slowest is the least rate, in bytes a second, that is taken for a transfer at all.
const slowest = 64 << 10

// guard ends a request that brings nothing: no byte for a while, or a chunk that takes longer than the slowest link would.
type guard struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
	silent *time.Timer // fires when no byte came
	slow   *time.Timer // fires when a chunk is not there in time; nil before the first
}

func newGuard(parent context.Context, stall time.Duration) (context.Context, *guard) {
	ctx, cancel := context.WithCancelCause(parent)
	g := &guard{ctx: ctx, cancel: cancel, stall: stall}
	g.silent = time.AfterFunc(stall, func() { cancel(backingimage.Errorf(backingimage.NotReady, "it sent no byte for %s", stall)) })
	return ctx, g
}

// begin gives the next so many bytes their time.
func (g *guard) begin(bytes int64) {
	most := g.stall + time.Duration(bytes)*time.Second/slowest
	if g.slow == nil {
		g.slow = time.AfterFunc(most, func() {
			g.cancel(backingimage.Errorf(backingimage.NotReady, "it sent %d bytes in more than %s", bytes, most))
		})
		return
	}
	g.slow.Reset(most)
}

// late reports whether the guard ended the request.
func (g *guard) late() bool { return backingimage.Is(context.Cause(g.ctx), backingimage.NotReady) }

// cause is why a request ended with err: the guard's reason when it was the guard.
func (g *guard) cause(err error) error {
	if g.late() {
		return context.Cause(g.ctx)
	}
	return err
}

func (g *guard) stop() {
	g.silent.Stop()
	if g.slow != nil {
		g.slow.Stop()
	}
	g.cancel(context.Canceled)
}

// reader tells the guard of every byte.
func (g *guard) reader(r io.Reader) io.Reader { return &guarded{r, g} }

type guarded struct {
	io.Reader
	guard *guard
}

// Read implements io.Reader.
func (r *guarded) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.guard.silent.Reset(r.guard.stall)
	}
	return n, err
}
