package fetch

import (
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// Steps of making a copy.
const (
	Downloading = "downloading" // Bytes of the source file
	Unpacking   = "unpacking"   // Bytes of the source file, when all of it is there
	Converting  = "converting"  // Bytes of the content
	Copying     = "copying"     // Bytes of the content; CopyLocal
	Receiving   = "receiving"   // Bytes of the content's data, without what is zero; FromPeers
	Verifying   = "verifying"   // Bytes of the content; Verify, and FromPeers where something is there already
	Repairing   = "repairing"   // Bytes of chunks; Repair
)

// Progress is how far a step is.
type Progress struct {
	Step         string
	Bytes        int64 // done in this step, what earlier attempts did included
	Total        int64 // of this step; -1 while unknown
	Format       string
	SourceBytes  int64 // -1 while unknown
	VirtualBytes int64 // -1 while unknown
	// Trouble is why the source gives nothing just now, in a sentence; "" while it does.
	Trouble string
}

// meter passes progress on, not too often.
type meter struct {
	mu       sync.Mutex
	clock    clock.PassiveClock
	report   func(Progress)
	progress Progress
	last     time.Time
}

// pause is the least time between two reports of one step.
const pause = 100 * time.Millisecond

func newMeter(c clock.PassiveClock, report func(Progress)) *meter {
	if report == nil {
		report = func(Progress) {}
	}
	return &meter{clock: c, report: report, progress: Progress{Total: -1, SourceBytes: -1, VirtualBytes: -1}}
}

// say changes what is known and reports it at once.
func (m *meter) say(change func(*Progress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.progress)
	m.last = m.clock.Now()
	m.report(m.progress)
}

// at reports that a step has done so many bytes; steps never go backwards.
func (m *meter) at(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.Bytes = max(m.progress.Bytes, bytes)
	relieved := m.progress.Trouble != ""
	m.progress.Trouble = ""
	if now := m.clock.Now(); relieved || now.Sub(m.last) >= pause {
		m.last = now
		m.report(m.progress)
	}
}

// trouble reports why no bytes come; the next bytes end it.
func (m *meter) trouble(cause error) {
	m.say(func(p *Progress) { p.Trouble = cause.Error() })
}

// step begins a step.
func (m *meter) step(name string, bytes, total int64) {
	m.say(func(p *Progress) { p.Step, p.Bytes, p.Total = name, bytes, total })
}

// Speedometer measures bytes per second over about the last ten seconds of one step.
type Speedometer struct {
	step string
	at   []sample
}

type sample struct {
	time  time.Time
	bytes int64
}

const speedWindow = 10 * time.Second

// Observe takes how many bytes of a step are done, and returns its bytes per second; 0 while that cannot be told.
func (m *Speedometer) Observe(now time.Time, step string, bytes int64) int64 {
	if step != m.step {
		m.step, m.at = step, nil
	}
	m.at = append(m.at, sample{now, bytes})
	for len(m.at) > 2 && now.Sub(m.at[0].time) > speedWindow {
		m.at = m.at[1:]
	}
	seconds := now.Sub(m.at[0].time).Seconds()
	if seconds < 1 { // too short to tell
		return 0
	}
	return int64(float64(bytes-m.at[0].bytes) / seconds)
}
