package fetch

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// tail reads a file from its beginning while it is still written, and waits for more where it ends. One goroutine
// reads, another writes and tells how far it is.
type tail struct {
	ctx     context.Context
	file    *os.File
	offset  atomic.Int64  // of the next byte to be read
	written atomic.Int64  // bytes that are there
	ended   atomic.Bool   // no more will be written
	more    chan struct{} // has an item when written or ended changed
}

func newTail(ctx context.Context, f *os.File, written int64) *tail {
	t := &tail{ctx: ctx, file: f, more: make(chan struct{}, 1)}
	t.written.Store(written)
	return t
}

// grow tells that so many bytes of the file are there. A nil tail has no reader.
func (t *tail) grow(bytes int64) {
	if t != nil {
		t.written.Store(bytes)
		t.wake()
	}
}

// end tells that the file is complete.
func (t *tail) end() {
	t.ended.Store(true)
	t.wake()
}

func (t *tail) wake() {
	select {
	case t.more <- struct{}{}:
	default:
	}
}

// Read waits until there is something to read. It returns the error of the tail's context when that ends.
func (t *tail) Read(p []byte) (int, error) {
	for {
		if t.ctx.Err() != nil { // a reader that never has to wait must end, too
			return 0, context.Cause(t.ctx)
		}
		ended, offset := t.ended.Load(), t.offset.Load() // ended first: what was written before it is seen then
		if left := t.written.Load() - offset; left > 0 {
			n, err := t.file.ReadAt(p[:min(int64(len(p)), left)], offset)
			t.offset.Add(int64(n))
			if err != nil {
				return n, fmt.Errorf("read %s at offset %d: %w", t.file.Name(), offset, err)
			}
			return n, nil
		}
		if ended {
			return 0, io.EOF
		}
		select {
		case <-t.more:
		case <-t.ctx.Done():
			return 0, context.Cause(t.ctx)
		}
	}
}
