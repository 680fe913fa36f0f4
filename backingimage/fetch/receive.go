package fetch

import (
	"context"
	"fmt"
	"io"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// receive gets a stretch of chunks from a member and notes how that went.
func (s *swarm) receive(parent context.Context, m *member, r stretch, buffer []byte) {
	ctx, g := newGuard(parent, s.job.Stall)
	defer g.stop()
	began, next := time.Now(), r.first
	first, err := s.stream(ctx, g, m, r, buffer, &next)
	late := g.late()
	err = g.cause(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	m.flying--
	for i := r.first; i < r.first+r.count; i++ {
		s.landed(i)
	}
	switch {
	case parent.Err() != nil || s.fault != nil:
	case err != nil:
		s.refused(parent, m, next, err, late)
	default:
		m.fails, m.trouble = 0, nil
		m.pace(first.Sub(began), time.Since(began)/time.Duration(r.count))
	}
}

// landed ends a chunk's flight; one that did not come is to be asked for again. The caller has the lock.
func (s *swarm) landed(index int64) {
	f := s.flights[index]
	if f == nil {
		return
	}
	if f.twice { // the other one goes on
		f.twice = false
		return
	}
	delete(s.flights, index)
	if s.missing.Has(index) {
		s.unasked++
	}
}

// pace lets a member that answers quickly have more requests at a time, and one that does not fewer: whoever waits in a
// queue could have had something else meanwhile. The caller has the lock.
func (m *member) pace(first, took time.Duration) {
	if m.took += (took - m.took) / 4; m.took < took/4 {
		m.took = took // the first one
	}
	switch {
	case first < quick:
		m.window = min(m.window+1, maxWindow)
	case first > busy:
		m.window = max(m.window-1, 1)
	}
}

// refused notes why a chunk did not come, and who is asked for it next. The caller has the lock.
func (s *swarm) refused(ctx context.Context, m *member, index int64, err error, late bool) {
	log := klog.FromContext(ctx)
	switch {
	case backingimage.Is(err, backingimage.Busy): // others have it soon
		m.later[index] = time.Now().Add(laterTime)
		return
	case backingimage.Is(err, backingimage.Corrupt):
		m.wrong, m.trouble = true, err
		s.job.Retried(RetriedWrong)
		log.Info("A peer sent wrong bytes and is asked for nothing more in this attempt", "peer", m.node(), "endpoint", m.peer.Endpoint(), "image", s.job.Image, "chunk", index)
		return
	case backingimage.Is(err, backingimage.NotFound), backingimage.Is(err, backingimage.Conflict): // it said that it has it
		m.later[index] = time.Now().Add(longestRest)
		m.has.Clear(index)
		m.whole = false
	case late:
		s.job.Retried(RetriedLate)
		m.has, m.whole = nil, false
		m.tired(err)
		return
	default:
		m.has, m.whole = nil, false // asked first whether it is there again
		m.tired(err)
	}
	s.job.Retried(RetriedFailed)
	log.V(2).Info("A peer did not give a chunk", "peer", m.node(), "image", s.job.Image, "chunk", index, "reason", err.Error())
}

// stream reads a stretch, chunk by chunk; next is the one that it is at. It returns when the first byte came.
func (s *swarm) stream(ctx context.Context, g *guard, m *member, r stretch, buffer []byte, next *int64) (first time.Time, err error) {
	offset, _ := s.manifest.Span(r.first)
	last, length := s.manifest.Span(r.first + r.count - 1)
	body, err := m.peer.Data(ctx, offset, last+length-offset, r.choice)
	if err != nil {
		return first, err
	}
	defer body.Close()
	first = time.Now()
	in := g.reader(body)
	for ; *next < r.first+r.count; *next++ {
		_, length := s.manifest.Span(*next)
		chunk := buffer[:length]
		g.begin(length)
		if _, err := io.ReadFull(in, chunk); err != nil {
			return first, fmt.Errorf("read chunk %d: %w", *next, err)
		}
		if manifest.Sum(chunk) != s.manifest.Digest(*next) {
			return first, wrongChunk(*next)
		}
		if err := s.keep(*next, chunk); err != nil {
			return first, err
		}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(in, 1)) // its end, so that the connection can be used again
	return first, nil
}

// keep writes a chunk that is right, unless it has come from elsewhere meanwhile.
func (s *swarm) keep(index int64, chunk []byte) error {
	s.mu.Lock()
	needed := s.missing.Has(index)
	if needed {
		s.missing.Clear(index)
	}
	s.mu.Unlock()
	if !needed {
		return nil
	}
	err := s.content.put(format.Chunk{Index: index, Data: chunk})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed(fmt.Errorf("write chunk %d: %w", index, err))
		return err
	}
	s.left--
	s.done += int64(len(chunk))
	s.progress = time.Now()
	s.share.add(index)
	s.job.Received(int64(len(chunk)))
	s.meter.at(s.done)
	return nil
}
