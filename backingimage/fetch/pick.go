package fetch

import (
	"context"
	"math/rand/v2"
	"time"

	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// flight is a chunk on its way.
type flight struct {
	by    *member
	since time.Time
	twice bool // another member was asked, too
}

// stretch is adjacent chunks that are asked for with one request.
type stretch struct {
	first, count int64
	choice       bool // there were others to ask for
}

// hedgeAfter is how long a chunk may be on its way before another peer that has nothing else to do is asked for it, too.
const hedgeAfter = 3 * time.Second

// request starts one request to the member with the fewest, if there is anything to ask of anyone; it reports whether it did.
func (s *swarm) request(ctx context.Context, group *parallel.Group) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.buffers) == 0 {
		return false
	}
	sharing := s.sharing()
	for _, m := range s.idle() {
		r, ok := s.pick(m, sharing)
		if !ok {
			m.dry = !m.whole
			continue
		}
		s.start(m, r)
		buffer := <-s.buffers // there is one: only this goroutine takes any
		group.Go(func() error {
			defer func() { s.buffers <- buffer; s.poke() }()
			if buffer == nil {
				buffer = make([]byte, manifest.ChunkBytes)
			}
			s.receive(ctx, m, r, buffer)
			return nil
		})
		return true
	}
	return false
}

// idle are the members that can be asked for something, those with the fewest requests first, by chance among equals. The
// caller has the lock.
func (s *swarm) idle() []*member {
	byFlying := make([][]*member, maxWindow)
	for _, m := range s.members { // a map: in an order that differs each time
		if m.has != nil && !m.wrong && !m.gone && m.flying < m.window && !time.Now().Before(m.rest) {
			byFlying[m.flying] = append(byFlying[m.flying], m)
		}
	}
	var list []*member
	for _, some := range byFlying {
		list = append(list, some...)
	}
	return list
}

// sharing reports whether others receive the image, too. The caller has the lock.
func (s *swarm) sharing() bool {
	for _, m := range s.members {
		if !m.whole && !m.wrong && !m.gone && m.fails == 0 {
			return true
		}
	}
	return false
}

// start notes that chunks are on their way. The caller has the lock.
func (s *swarm) start(m *member, r stretch) {
	m.flying++
	for i := r.first; i < r.first+r.count; i++ {
		if f := s.flights[i]; f != nil {
			f.twice = true
			continue
		}
		s.flights[i] = &flight{by: m, since: time.Now()}
		s.unasked--
	}
}

// pick chooses what to ask of a member; false when it has nothing that is needed. The caller has the lock.
func (s *swarm) pick(m *member, sharing bool) (stretch, bool) {
	switch {
	case s.unasked == 0:
		return s.pickLate(m)
	case sharing:
		return s.pickRare(m)
	}
	return s.pickNext(m)
}

// wanted reports whether a chunk is to be asked of a member. The caller has the lock.
func (s *swarm) wanted(m *member, index int64, now time.Time) bool {
	if !s.missing.Has(index) || !m.has.Has(index) || s.flights[index] != nil {
		return false
	}
	until, put := m.later[index]
	return !put || !now.Before(until)
}

// pickNext chooses the first chunks that the member has.
func (s *swarm) pickNext(m *member) (stretch, bool) {
	now := time.Now()
	for s.low < s.manifest.Chunks() && !s.missing.Has(s.low) {
		s.low++
	}
	for i := s.low; i < s.manifest.Chunks(); i++ {
		if !s.wanted(m, i, now) {
			continue
		}
		r := stretch{first: i, count: 1}
		for r.count < maxRun && s.wanted(m, i+r.count, now) {
			r.count++
		}
		return r, true
	}
	return stretch{}, false
}

// looks is how many chunks are weighed against each other at most.
const looks = 2048

// pickRare chooses, among the chunks that the member has, one that the fewest have: the search begins anywhere, and the first
// of equals is as good as any.
func (s *swarm) pickRare(m *member) (stretch, bool) {
	now := time.Now()
	best, fewest, seen := int64(-1), len(s.members)+1, 0
	chunks := s.manifest.Chunks()
	begin := rand.Int64N(chunks)
	for n := range chunks {
		i := (begin + n) % chunks
		if !s.wanted(m, i, now) {
			continue
		}
		if holders := s.holders(i); holders < fewest {
			best, fewest = i, holders
		}
		if seen++; seen >= looks {
			break
		}
	}
	return stretch{first: best, count: 1, choice: s.unasked > 1}, best >= 0
}

// holders is how many members have a chunk. The caller has the lock.
func (s *swarm) holders(index int64) int {
	n := 0
	for _, m := range s.members {
		if m.has.Has(index) && !m.wrong {
			n++
		}
	}
	return n
}

// pickLate chooses a chunk that has been on its way from another member for long, when nothing else is left.
func (s *swarm) pickLate(m *member) (stretch, bool) {
	now := time.Now()
	for i, f := range s.flights {
		if f.by != m && !f.twice && m.has.Has(i) && now.Sub(f.since) > hedgeAfter {
			return stretch{first: i, count: 1}, true
		}
	}
	return stretch{}, false
}
