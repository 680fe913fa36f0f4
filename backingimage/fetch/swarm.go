package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// swarm is one receiver among the agents that have an image or are getting it. One goroutine decides what is asked of whom;
// each request has a goroutine of its own, and what they find is in the swarm, under its lock.
//
// A receiver that is alone takes chunks in their order, several adjacent ones with one request. Where others receive too, it
// takes the chunk that the fewest of its peers have, one at a time and by chance among equals: then each of the receivers
// soon has something that the others lack, and none depends on the first copy alone.
type swarm struct {
	job      *PeerJob
	meter    *meter
	record   Record
	manifest *manifest.Manifest
	content  *contentFile
	share    *Share
	buffers  chan []byte // as many as there may be requests; allocated when they are needed
	wake     chan struct{}

	mu        sync.Mutex
	members   map[string]*member // by node
	listed    time.Time          // when Peers was last called
	listing   bool
	trouble   error // of the list
	missing   manifest.Bitmap
	unasked   int64             // of missing: how many are not on their way
	left      int64             // chunks that are not written yet
	low       int64             // no chunk before it is missing
	data      manifest.Bitmap   // chunks that are not zero
	dataCount int64             // of data
	flights   map[int64]*flight // what is on its way, by chunk
	done      int64             // bytes
	progress  time.Time         // when something last came
	told      time.Time         // when people were last told why nothing comes
	fault     error             // of this machine
}

const (
	maxFlights   = 6                      // requests at a time
	maxRun       = 4                      // chunks in one request
	tick         = 100 * time.Millisecond // how often a swarm looks around at least
	listInterval = 10 * time.Second
	shownAfter   = 2 * time.Second // when nothing comes, people are told
)

func newSwarm(j *PeerJob, m *meter) *swarm {
	s := &swarm{
		job: j, meter: m, buffers: make(chan []byte, maxFlights), wake: make(chan struct{}, 1),
		members: map[string]*member{}, flights: map[int64]*flight{}, progress: time.Now(),
	}
	for range maxFlights {
		s.buffers <- nil
	}
	return s
}

func (s *swarm) close() {
	if s.content != nil {
		s.content.direct.Close()
		s.content.file.Close()
	}
	for _, m := range s.members {
		m.peer.Close()
	}
}

// poke makes the deciding goroutine look around.
func (s *swarm) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// pause returns when something has happened, or some time has passed.
func (s *swarm) pause(ctx context.Context) error {
	timer := time.NewTimer(tick)
	defer timer.Stop()
	select {
	case <-s.wake:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// fill gets what is missing.
func (s *swarm) fill(ctx context.Context) error {
	s.meter.step(Receiving, s.done, s.manifest.DataBytes())
	s.progress = time.Now()
	ctx, cancel := context.WithCancel(ctx)
	group, gctx := parallel.WithContext(ctx)
	err := s.decide(gctx, group)
	cancel() // what is on its way twice, or asks what nobody needs to know any more
	werr := group.Wait()
	switch {
	case s.fault != nil:
		return s.fault
	case err != nil && werr != nil:
		return werr // which ended the other
	}
	return err
}

func (s *swarm) decide(ctx context.Context, group *parallel.Group) error {
	for {
		s.mu.Lock()
		ended, fault := s.left == 0, s.fault
		s.mu.Unlock()
		if ended || fault != nil {
			return fault
		}
		s.gather(ctx, group)
		for s.request(ctx, group) {
		}
		s.ask(ctx, group)
		if err := s.waits(); err != nil {
			return err
		}
		if err := s.pause(ctx); err != nil {
			return err
		}
	}
}

// waits tells people why nothing comes, and is NotReady when it has not for too long.
func (s *swarm) waits() error {
	s.mu.Lock()
	idle := time.Since(s.progress)
	if idle < min(shownAfter, s.job.Patience) {
		s.mu.Unlock()
		return nil
	}
	why, tell := s.why(), time.Since(s.told) >= shownAfter
	if tell {
		s.told = time.Now()
	}
	s.mu.Unlock()
	switch {
	case idle >= s.job.Patience:
		return backingimage.Errorf(backingimage.NotReady, "%s", why)
	case tell:
		s.meter.trouble(errors.New(why))
	}
	return nil
}

// why says what is wrong with each peer. The caller has the lock.
func (s *swarm) why() string {
	const most = 5
	var list []string
	for _, m := range s.members {
		list = append(list, m.node()+" "+m.says(s.dataCount))
	}
	slices.Sort(list)
	if more := len(list) - most; more > 0 {
		list = append(list[:most], fmt.Sprintf("%d more give nothing either", more))
	}
	switch {
	case len(list) > 0:
		return "waits for a peer: " + strings.Join(list, ", ")
	case s.trouble != nil:
		return fmt.Sprintf("waits for a peer: they cannot be listed: %v", s.trouble)
	}
	return "waits for a peer: no other node has a copy, or is making one"
}

// failed keeps the first error that is this machine's, which ends the fetch. The caller has the lock.
func (s *swarm) failed(err error) {
	if s.fault == nil {
		s.fault = err
	}
	s.poke()
}
