package node

import (
	"sync"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/fetch"
)

// meter turns a fetch's progress into reports at a bounded rate, with speed and time left. What people and CreateVolume
// wait for, a new step, the sizes and trouble, is reported at once; reports are written by a goroutine of the meter's own so that
// a slow API server does not slow the fetch.
type meter struct {
	clock    clock.WithTicker
	interval time.Duration
	describe description
	write    func(func(*v1alpha1.BackingImageCopyStatus))

	mu      sync.Mutex
	latest  fetch.Progress
	changed bool

	urgent chan struct{}
	quit   chan struct{}
	done   chan struct{}
}

// description writes progress, at a rate in bytes per second, into a copy's status.
type description func(s *v1alpha1.BackingImageCopyStatus, p fetch.Progress, rate int64)

func newMeter(c clock.WithTicker, interval time.Duration, describe description, write func(func(*v1alpha1.BackingImageCopyStatus))) *meter {
	m := &meter{clock: c, interval: interval, describe: describe, write: write, urgent: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go m.run()
	return m
}

// progress takes what the fetch says; it never blocks.
func (m *meter) progress(p fetch.Progress) {
	m.mu.Lock()
	urgent := p.Step != m.latest.Step || p.VirtualBytes != m.latest.VirtualBytes || p.Trouble != m.latest.Trouble
	m.latest, m.changed = p, true
	m.mu.Unlock()
	if urgent {
		select {
		case m.urgent <- struct{}{}:
		default:
		}
	}
}

// stop ends the reports and returns when the last is written.
func (m *meter) stop() {
	close(m.quit)
	<-m.done
}

func (m *meter) run() {
	defer close(m.done)
	ticker := m.clock.NewTicker(m.interval)
	defer ticker.Stop()
	var speed fetch.Speedometer
	for {
		select {
		case <-m.quit:
			return
		case <-m.urgent:
		case <-ticker.C():
		}
		m.mu.Lock()
		p, changed := m.latest, m.changed
		m.changed = false
		m.mu.Unlock()
		if changed {
			rate := speed.Observe(m.clock.Now(), p.Step, p.Bytes)
			m.write(func(s *v1alpha1.BackingImageCopyStatus) { m.describe(s, p, rate) })
		}
	}
}

// inProgress is the status of a copy that is being made.
func inProgress(s *v1alpha1.BackingImageCopyStatus, p fetch.Progress, rate int64) {
	s.State, s.Message = v1alpha1.CopyInProgress, p.Step
	if p.Format != "" && p.VirtualBytes < 0 {
		s.Message += "; the virtual size is known when all of it is unpacked or converted (" + p.Format + ")"
	}
	if p.Trouble != "" {
		s.Message, rate = p.Step+" is interrupted, and will go on by itself: "+p.Trouble, 0
	}
	count(s, p, rate)
	s.Format, s.Size, s.VirtualSize = p.Format, max(p.SourceBytes, 0), max(p.VirtualBytes, 0)
}

// count writes the numbers of a step.
func count(s *v1alpha1.BackingImageCopyStatus, p fetch.Progress, rate int64) {
	s.BytesDone, s.BytesTotal, s.BytesPerSecond = p.Bytes, max(p.Total, 0), rate
	s.Progress, s.ETASeconds = 0, 0
	if p.Total > 0 {
		s.Progress = int32(min(p.Bytes*100/p.Total, 99)) // 100 is for ready
		if rate > 0 {
			s.ETASeconds = (p.Total - p.Bytes + rate - 1) / rate
		}
	}
}
