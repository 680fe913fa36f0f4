package fetch

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// member is a peer as a swarm sees it. The swarm's lock guards it.
type member struct {
	peer    Peer
	has     manifest.Bitmap // nil while it is not known
	count   int64           // chunks that are not zero, of those that it has
	whole   bool            // it has all
	gone    bool            // it is not on the list any more
	wrong   bool            // it sent wrong bytes and is asked no more
	trouble error           // why it gave nothing the last time; nil when it did
	fails   int             // in a row
	rest    time.Time       // it is not asked for anything before

	asking bool      // which chunks it has
	asked  time.Time // when it last was

	flying int                 // requests on their way
	window int                 // how many there may be
	took   time.Duration       // for a chunk, lately; 0 while it is not known
	later  map[int64]time.Time // chunks that are not asked of it before
}

const (
	maxWindow      = 4
	quick          = 50 * time.Millisecond  // a peer whose first byte comes so soon may have more requests
	busy           = 250 * time.Millisecond // one that takes so long may have fewer
	askInterval    = time.Second
	hungryInterval = 200 * time.Millisecond
	laterTime      = time.Second // until a chunk that was refused is asked for again
	longestRest    = 5 * time.Second
	answerBound    = 10 * time.Second // for small questions
)

func (m *member) node() string { return m.peer.Node() }

// says is what is wrong with it, after its name; chunks is how many there are.
func (m *member) says(chunks int64) string {
	switch {
	case m.wrong:
		return "sent wrong bytes"
	case backingimage.Is(m.trouble, backingimage.NotFound) && m.has == nil:
		return "has nothing yet"
	case m.trouble != nil:
		return fmt.Sprintf("is silent (%v)", m.trouble)
	case m.has == nil:
		return "was not heard yet"
	}
	return fmt.Sprintf("has %d of %d chunks", m.count, chunks)
}

// tired lets a member rest that failed. The caller has the lock.
func (m *member) tired(err error) {
	m.trouble = err
	m.fails++
	m.window = 1
	m.rest = time.Now().Add(min(200*time.Millisecond<<min(m.fails, 10), longestRest))
}

// gather lists the peers when that is due.
func (s *swarm) gather(ctx context.Context, group *parallel.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	interval := listInterval
	if len(s.members) == 0 || time.Since(s.progress) > shownAfter {
		interval = time.Second // somebody may have moved, or come up
	}
	if s.listing || time.Since(s.listed) < interval {
		return
	}
	s.listing = true
	group.Go(func() error {
		peers, err := s.job.Peers(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.listing, s.listed = false, time.Now()
		if ctx.Err() != nil {
			return nil
		}
		if s.trouble = err; err == nil {
			s.join(peers)
		}
		s.poke()
		return nil
	})
}

// join makes the members those that are listed. One that moved or has another key is a new one. The caller has the lock.
func (s *swarm) join(peers []Peer) {
	for _, m := range s.members {
		m.gone = true
	}
	for _, p := range peers {
		old := s.members[p.Node()]
		if old != nil && old.peer.Endpoint() == p.Endpoint() {
			old.gone = false
			continue
		}
		if old != nil {
			old.peer.Close()
		}
		s.members[p.Node()] = &member{peer: p, window: 1, later: map[int64]time.Time{}}
	}
	for name, m := range s.members {
		if m.gone && m.flying == 0 {
			m.peer.Close()
			delete(s.members, name)
		}
	}
}

// ask asks members which chunks they have, when that is due.
func (s *swarm) ask(ctx context.Context, group *parallel.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	hungry := len(s.buffers) > 0 // there could be more requests on their way, if anybody had what is needed
	for _, m := range s.members {
		interval := askInterval
		if hungry {
			interval = hungryInterval
		}
		if m.asking || m.wrong || m.gone || m.whole || now.Before(m.rest) || now.Sub(m.asked) < interval {
			continue
		}
		m.asking = true
		group.Go(func() error { return s.askOne(ctx, m) })
	}
}

func (s *swarm) askOne(parent context.Context, m *member) error {
	has, err := bounded(parent, answerBound, func(ctx context.Context) (manifest.Bitmap, error) {
		return m.peer.Chunks(ctx, s.job.ContentDigest)
	})
	if err == nil && len(has) != len(s.data) {
		err = backingimage.Errorf(backingimage.Corrupt, "it says of %d chunks whether it has them", 8*len(has))
	}
	if parent.Err() != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.poke()
	m.asking, m.asked = false, time.Now()
	switch {
	case backingimage.Is(err, backingimage.NotFound):
		m.has, m.trouble, m.fails = nil, err, 0
	case err != nil:
		m.has = nil
		m.tired(err)
		klog.FromContext(parent).V(4).Info("A peer did not say what it has", "peer", m.node(), "reason", err.Error())
	default:
		s.learn(m, has)
	}
	return nil
}

// learn keeps which chunks a member has. The caller has the lock.
func (s *swarm) learn(m *member, has manifest.Bitmap) {
	m.has, m.trouble, m.count = has, nil, 0
	for i := range has {
		has[i] &= s.data[i]
	}
	m.count = has.Count()
	m.whole = m.count == s.dataCount
}
