package transfer

import (
	"context"
	"fmt"
	"io"
	"time"

	"plinth.dev/plinth/backingimage"
)

// SendStream uploads what File gives until it ends: a pipe, which can be read once. After an error it cannot go on. A pipe that pauses is
// waited for, as long as the agent keeps an upload to which nothing comes.
func (s *Sending) SendStream(ctx context.Context) error {
	var client *Client
	err := s.persist(ctx, func(ctx context.Context) (err error) {
		var up Upload
		client, up, err = s.find(ctx, -1, string(NewToken()))
		if err == nil && up.Offset > 0 {
			client.Close()
			err = backingimage.Errorf(backingimage.Conflict, "an upload of this image has begun; what comes from a pipe cannot continue it: delete the image, or give the file")
		}
		return err
	})
	if err != nil {
		return err
	}
	defer client.Close()
	from := newStream(ctx, s.File)
	for from.wait(ctx) {
		if err := s.append(ctx, client, from, -1, func() error { return nil }); err != nil {
			return fmt.Errorf("%w; what came from a pipe cannot be sent again: delete the image, and start anew", err)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if from.err != nil {
		return fmt.Errorf("read %s: %w", s.File.Name(), from.err)
	}
	return s.persist(ctx, func(ctx context.Context) error {
		client, err := s.Dial(ctx)
		if err != nil {
			return err
		}
		defer client.Close()
		return client.Declare(ctx, s.sent)
	})
}

// streamPause is how long a pipe may give nothing before the request that sends what it gives ends: the agent would take one that says
// nothing for longer for broken. Replaced in tests.
var streamPause = 15 * time.Second

// stream is a pipe. Its Read returns io.EOF at the pipe's end, and also when that pauses; then there is more after wait.
type stream struct {
	pieces chan []byte // closed at the pipe's end
	piece  []byte      // not read yet
	ended  bool
	err    error // that the pipe ended with, but io.EOF; set before pieces is closed
}

// newStream begins to read a pipe, until that or ctx ends. Nothing interrupts a read that has begun.
func newStream(ctx context.Context, pipe io.Reader) *stream {
	s := &stream{pieces: make(chan []byte)}
	go func() {
		defer close(s.pieces)
		for {
			piece := make([]byte, burst)
			n, err := pipe.Read(piece)
			if n > 0 {
				select {
				case s.pieces <- piece[:n]:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				if err != io.EOF {
					s.err = err
				}
				return
			}
		}
	}()
	return s
}

// wait returns when there is something to read: false when the pipe has ended, or ctx has.
func (s *stream) wait(ctx context.Context) bool {
	if len(s.piece) > 0 || s.ended {
		return len(s.piece) > 0
	}
	select {
	case piece, more := <-s.pieces:
		s.piece, s.ended = piece, !more
		return more
	case <-ctx.Done():
		return false
	}
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.piece) == 0 && !s.ended {
		timer := time.NewTimer(streamPause)
		defer timer.Stop()
		select {
		case piece, more := <-s.pieces:
			s.piece, s.ended = piece, !more
		case <-timer.C:
		}
	}
	if len(s.piece) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.piece)
	s.piece = s.piece[n:]
	return n, nil
}
