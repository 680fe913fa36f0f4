package main

import (
	"sync"
	"time"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

const (
	barInterval = 200 * time.Millisecond // between two changes of a bar
	speedWindow = 10 * time.Second       // that a rate is over
)

// speed measures bytes per second over the last seconds.
type speed struct{ seen []seen }

type seen struct {
	at    time.Time
	bytes int64
}

// observe notes how many bytes are done by now and returns the rate, 0 while it is too early to tell.
func (s *speed) observe(now time.Time, bytes int64) int64 {
	if n := len(s.seen); n > 0 && bytes < s.seen[n-1].bytes { // it went back to resume
		s.seen = nil
	}
	s.seen = append(s.seen, seen{now, bytes})
	for len(s.seen) > 2 && now.Sub(s.seen[0].at) > speedWindow {
		s.seen = s.seen[1:]
	}
	seconds := now.Sub(s.seen[0].at).Seconds()
	if seconds < 1 {
		return 0
	}
	return int64(float64(bytes-s.seen[0].bytes) / seconds)
}

// transferProgress turns bytes that this command moves into what the meter shows.
type transferProgress struct {
	meter *meter
	what  string // image fedora-42
	doing string // uploading
	total int64  // 0: not known

	mu    sync.Mutex
	done  int64
	speed speed
	shown time.Time
}

// report shows that so many bytes are done, or why none are moving.
func (p *transferProgress) report(done int64, trouble error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = done
	p.show(trouble)
}

// add reports that more bytes are done.
func (p *transferProgress) add(bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += bytes
	p.show(nil)
}

// trouble reports why no bytes are moving.
func (p *transferProgress) trouble(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.show(err)
}

// show shows it, not too often. The caller has the lock.
func (p *transferProgress) show(trouble error) {
	now := p.meter.clock.Now()
	if trouble == nil && now.Sub(p.shown) < barInterval {
		return
	}
	p.shown = now
	shown := progress{what: p.what, state: string(v1alpha1.CopyInProgress), message: p.doing, doneBytes: p.done, totalBytes: p.total}
	if trouble != nil {
		shown.state, shown.message = "waiting", p.doing+" is interrupted, and will go on by itself: "+trouble.Error()
	} else if shown.bytesPerSecond = p.speed.observe(now, p.done); shown.bytesPerSecond > 0 && p.total > 0 {
		shown.secondsLeft = (p.total - p.done) / shown.bytesPerSecond
	}
	p.meter.show(shown)
}
