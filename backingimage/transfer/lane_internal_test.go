package transfer

import (
	"context"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/manifest"
)

func TestRangesOfWholeChunks(t *testing.T) {
	const bytes = 3*manifest.ChunkBytes + 1024
	for header, want := range map[string][2]int64{
		"bytes=0-2097151": {0, 1}, "bytes=2097152-6291455": {1, 3}, "bytes=6291456-6292479": {3, 4}, "bytes=0-6292479": {0, 4},
		"": {}, "bytes=0-": {}, "bytes=-5": {}, "bytes=1-2097151": {}, "bytes=0-2097150": {}, "bytes=6291456-6292480": {}, "bytes=0-2097151,5-6": {},
		"bytes=2097152-2097151": {}, "bytes=0-99999999999999999999": {}, "bytes=8388608-10485759": {}, "items=0-2097151": {},
	} {
		first, end, ok := chunkRange(header, bytes)
		if ok != (want != [2]int64{}) || ok && [2]int64{first, end} != want {
			t.Errorf("%q: %d to %d, %t", header, first, end, ok)
		}
	}
}

func TestReceiversGetDifferentChunks(t *testing.T) {
	c := &steppedClock{now: time.Unix(1e9, 0)}
	g := newGiven(c)
	if !g.give("i", "a", 0, 2, true) || !g.give("i", "a", 0, 1, true) {
		t.Error("the first is refused")
	}
	if g.give("i", "b", 1, 2, true) {
		t.Error("what has just gone to a goes to b, which has a choice")
	}
	if !g.give("i", "b", 1, 2, false) || !g.give("j", "b", 0, 1, true) {
		t.Error("who has no choice, or asks for another image, is refused")
	}
	c.now = c.now.Add(20 * givenTime)
	if !g.give("i", "c", 0, 1, true) || len(g.to) != 1 {
		t.Errorf("what is past counts still: %v", g.to)
	}
}

type steppedClock struct{ now time.Time }

func (c *steppedClock) Now() time.Time                  { return c.now }
func (c *steppedClock) Since(t time.Time) time.Duration { return c.now.Sub(t) }

func TestTheLaneKeepsToItsRate(t *testing.T) {
	l := newLane(1 << 20)
	began := time.Now()
	must(t, l.wait(t.Context(), burst)) // at once
	must(t, l.wait(t.Context(), 4*burst))
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("256 KiB at 1 MiB/s took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.wait(ctx, 100*burst); err == nil {
		t.Error("who has gone still waits")
	}
}
