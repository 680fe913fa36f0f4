package fetch

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"plinth.dev/plinth/backingimage/disk/direct"
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

// request starts one request, if there is anything to ask of anyone; it reports whether it did.
func (s *swarm) request(ctx context.Context, group *parallel.Group) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.buffers) == 0 {
		return false
	}
	m, r, ok := s.next()
	if !ok {
		return false
	}
	s.start(m, r)
	buffer := <-s.buffers // there is one: only this goroutine takes any
	group.Go(func() error {
		defer func() { s.buffers <- buffer; s.poke() }()
		if buffer == nil {
			buffer = direct.Buffer(manifest.ChunkBytes)
		}
		s.receive(ctx, m, r, buffer)
		return nil
	})
	return true
}

// next chooses whom to ask for what. The caller has the lock.
func (s *swarm) next() (*member, stretch, bool) {
	sharing := s.sharing()
	for _, turn := range s.turns(sharing) {
		r, ok := s.pick(turn.of, sharing)
		if !ok || turn.exclusive && s.partly(r.first) {
			continue
		}
		return turn.of, r, true
	}
	return nil, stretch{}, false
}

// turn is a member's turn to be asked.
type turn struct {
	of        *member
	rank      int
	exclusive bool // only for what no other receiver has
}

// turns are the members that can be asked for something, in the order in which they are, by chance among equals. Where
// others receive, too, whoever has all is asked first for one chunk that no receiver has yet, so that there is ever more to
// share; then the receivers are asked, and only then those who have all for anything. Who is much slower than another comes
// last: what it could give comes from elsewhere before. The caller has the lock.
func (s *swarm) turns(sharing bool) []turn {
	var list []turn
	best := s.fastest()
	for _, m := range s.members { // a map: in an order that differs each time
		if m.has == nil || m.wrong || m.gone || m.flying >= m.window || time.Now().Before(m.rest) {
			continue
		}
		slow := m.took > slower*best
		switch {
		case slow:
			list = append(list, turn{of: m, rank: 3 * maxWindow})
		case !sharing || !m.whole:
			list = append(list, turn{of: m, rank: maxWindow})
		case m.flying == 0:
			list = append(list, turn{of: m, exclusive: true}, turn{of: m, rank: 2 * maxWindow})
		default:
			list = append(list, turn{of: m, rank: 2 * maxWindow})
		}
	}
	slices.SortStableFunc(list, func(a, b turn) int { return cmp.Compare(a.rank+a.of.flying, b.rank+b.of.flying) })
	return list
}

// slower is how many times as long as the fastest member a slow one takes for a chunk.
const slower = 4

// fastest is what the fastest member takes for a chunk; 0 while that is not known. The caller has the lock.
func (s *swarm) fastest() time.Duration {
	best := time.Duration(0)
	for _, m := range s.members {
		if m.took > 0 && !m.gone && !m.wrong && (best == 0 || m.took < best) {
			best = m.took
		}
	}
	return best
}

// partly reports whether a receiver has a chunk, that is, somebody who does not have all. The caller has the lock.
func (s *swarm) partly(index int64) bool {
	for _, m := range s.members {
		if !m.whole && !m.wrong && m.has.Has(index) {
			return true
		}
	}
	return false
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
