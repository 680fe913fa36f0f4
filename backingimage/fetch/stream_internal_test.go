package fetch

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// ill is a source that says of every connection that it ended, in an error that wraps io.EOF.
type ill struct{}

func (ill) Open(context.Context, int64, string) (*source.Body, error) {
	return nil, backingimage.Errorf(backingimage.NotReady, "the connection broke: %w", io.EOF)
}
func (ill) String() string   { return "ill" }
func (ill) Identity() string { return "ill" }

func TestABrokenConnectionIsNotTheEndOfTheFile(t *testing.T) {
	s := &stream{source: ill{}, clock: clock.RealClock{}, patience: 10 * time.Millisecond, bytes: -1, lastByte: time.Now(), delay: time.Millisecond, broken: func(error) {}}
	_, err := s.fill(context.Background(), make([]byte, 1))
	if !backingimage.Is(err, backingimage.NotReady) || errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
}
