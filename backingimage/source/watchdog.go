package source

import (
	"context"
	"fmt"
	"io"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
)

// watchdog ends a request during which nothing arrives for too long. It watches from the dial to the last byte: a
// server that accepts and says nothing is stalled like one that stops in the middle.
type watchdog struct {
	cancel context.CancelCauseFunc
	timer  clock.Timer
	limit  time.Duration
}

// watch starts a watchdog over the context that it returns.
func watch(ctx context.Context, c clock.WithDelayedExecution, limit time.Duration) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{cancel: cancel, limit: limit}
	w.timer = c.AfterFunc(limit, func() { cancel(&stallError{limit}) })
	return ctx, w
}

// wake and rest bracket each wait for the network: the time in which nobody reads does not count.
func (w *watchdog) wake() { w.timer.Reset(w.limit) }
func (w *watchdog) rest() { w.timer.Stop() }

func (w *watchdog) stop() {
	w.rest()
	w.cancel(context.Canceled)
}

// stallError is the cause of a context that a watchdog ended.
type stallError struct{ limit time.Duration }

func (e *stallError) Error() string { return fmt.Sprintf("no byte arrived for %s", e.limit) }

// watchedBody is a response's body under a watchdog.
type watchedBody struct {
	io.ReadCloser
	ctx    context.Context // as returned by watch
	parent context.Context
	dog    *watchdog
	shown  string
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.dog.wake()
	n, err := b.ReadCloser.Read(p)
	b.dog.rest()
	if err == nil || err == io.EOF {
		return n, err
	}
	if cause := b.parent.Err(); cause != nil {
		return n, cause
	}
	if cause := context.Cause(b.ctx); cause != nil {
		err = cause
	}
	return n, backingimage.Errorf(backingimage.NotReady, "download %s: the connection broke: %w", b.shown, told(err))
}

func (b *watchedBody) Close() error {
	b.dog.stop()
	return b.ReadCloser.Close()
}
