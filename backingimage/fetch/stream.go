package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// stream is a source that goes on after breaks. It is used by one goroutine.
type stream struct {
	source   source.Source
	clock    clock.Clock
	patience time.Duration
	// checked is true when the whole is compared with a checksum in the end, so that bytes may be joined although the
	// source has no validator.
	checked bool

	arrived func(offset int64) // called when bytes came
	broken  func(cause error)  // called when the source gives nothing, before it is tried again

	offset    int64 // of the next byte
	bytes     int64 // of the whole; -1 while unknown
	validator string
	body      *source.Body
	lastByte  time.Time
	delay     time.Duration
	restarts  int
	changes   int // restarts because the file changed
}

// Delays between tries of one stream.
const (
	firstDelay = 200 * time.Millisecond
	maxDelay   = 5 * time.Second
)

// maxRestarts bounds how often a stream begins anew before its caller is sent away to wait.
const maxRestarts = 5

// maxChanges of the file that one stream puts up with.
const maxChanges = 1

// errRestart means that the source had to begin anew: the stream is at offset 0 again, and what was read is void.
var errRestart = errors.New("the source begins anew")

// fill reads until p is full. It returns io.EOF with the last bytes of the source, errRestart, ctx's error, or an
// error that ends the attempt.
func (s *stream) fill(ctx context.Context, p []byte) (n int, err error) {
	for n < len(p) {
		if s.body == nil {
			if err := s.connect(ctx); err != nil {
				return n, err
			}
		}
		m, err := s.body.Read(p[n:])
		n += m
		s.advance(m)
		if err == nil {
			continue
		}
		s.close()
		if err == io.EOF {
			if s.bytes < 0 || s.offset == s.bytes {
				return n, io.EOF
			}
			err = backingimage.Errorf(backingimage.NotReady, "download %s: the connection ended at byte %d of %d", s.source, s.offset, s.bytes)
		}
		if err := s.wait(ctx, err); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (s *stream) advance(n int) {
	if n > 0 {
		s.offset += int64(n)
		s.lastByte = s.clock.Now()
		s.delay = firstDelay
		s.arrived(s.offset)
	}
}

// connect opens the source where the stream is, again and again until patience ends.
func (s *stream) connect(ctx context.Context) error {
	for {
		body, err := s.open(ctx)
		if err == nil {
			return s.adopt(ctx, body)
		}
		if err := s.wait(ctx, err); err != nil {
			return err
		}
	}
}

func (s *stream) open(ctx context.Context) (*source.Body, error) {
	if s.validator == "" && !s.checked {
		return s.source.Open(ctx, 0, "")
	}
	return s.source.Open(ctx, s.offset, s.validator)
}

// adopt takes a body that is the stream's beginning or continues what was read; after any other the stream begins anew.
func (s *stream) adopt(ctx context.Context, body *source.Body) error {
	switch {
	case s.offset == 0 && body.Offset == 0:
		s.body, s.bytes, s.validator = body, body.Bytes, body.Validator
		return nil
	case s.offset == body.Offset && (s.bytes < 0 || s.bytes == body.Bytes):
		s.body, s.bytes = body, body.Bytes
		return nil
	}
	body.Close()
	return s.restart(ctx, s.changed(body))
}

// changed reports whether a body that does not continue the stream is of another version of the file.
func (s *stream) changed(body *source.Body) bool {
	return s.validator != "" && body.Validator != "" && s.validator != body.Validator ||
		s.bytes >= 0 && body.Bytes >= 0 && s.bytes != body.Bytes
}

// restart begins anew, or says why not: a file that changed once may have been replaced, one that changes again will not be
// caught; a server that cannot continue may do better later.
func (s *stream) restart(ctx context.Context, changed bool) error {
	at := s.offset
	s.offset, s.bytes, s.validator = 0, -1, ""
	s.restarts++
	if changed {
		s.changes++
	}
	klog.FromContext(ctx).Info("Starting the download over", "source", s.source.String(), "offset", at, "fileChanged", changed, "restarts", s.restarts)
	switch {
	case s.changes > maxChanges:
		return backingimage.Errorf(backingimage.Precondition, "download %s: the file at the source changed while it was downloaded, and again after the download had started over; use a URL whose file stays as it is", s.source)
	case s.restarts > maxRestarts:
		return backingimage.Errorf(backingimage.NotReady, "download %s: had to start over %d times, because connections break and the server cannot continue them; it will be tried again", s.source, s.restarts)
	}
	return errRestart
}

// wait sleeps before the next try, or returns why there is none.
func (s *stream) wait(ctx context.Context, cause error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cause = &noEnd{cause}
	if !backingimage.Is(cause, backingimage.NotReady) {
		return cause
	}
	asked := source.RetryAfter(cause)
	if asked > s.patience {
		return cause
	}
	delay := max(s.delay, asked)
	s.delay = min(2*s.delay, maxDelay)
	if s.clock.Since(s.lastByte)+delay > s.patience {
		return fmt.Errorf("nothing arrived for %s: %w", s.clock.Since(s.lastByte).Round(time.Second), cause)
	}
	klog.FromContext(ctx).V(2).Info("Download interrupted", "source", s.source.String(), "offset", s.offset, "wait", delay, "reason", cause.Error())
	s.broken(cause)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.clock.After(delay):
		return nil
	}
}

// noEnd is an error in which errors.Is finds nothing, so that an io.EOF deep in it, of a connection that broke, is not taken
// for the end of the source. errors.As finds all that is in it.
type noEnd struct{ error }

func (e *noEnd) As(target any) bool { return errors.As(e.error, target) }

func (s *stream) close() {
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
}
