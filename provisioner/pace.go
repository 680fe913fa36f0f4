package provisioner

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup"
)

// pace turns the progress of a backup or a restore into reports at a bounded rate, with speed and time left.
type pace struct {
	clock clock.WithTicker

	mu     sync.Mutex
	latest backup.Progress
	begun  bool
}

// reportInterval is how often progress is written, at most.
const reportInterval = 2 * time.Second

// see takes what is said of the progress; it never blocks.
func (p *pace) see(progress backup.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latest, p.begun = progress, true
}

// run writes reports until ctx ends.
func (p *pace) run(ctx context.Context, write func(progress backup.Progress, bytesPerSecond, secondsLeft int64)) {
	ticker := p.clock.NewTicker(reportInterval)
	defer ticker.Stop()
	began, first := p.clock.Now(), int64(-1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		p.mu.Lock()
		now, begun := p.latest, p.begun
		p.mu.Unlock()
		if !begun {
			continue
		}
		if first < 0 {
			began, first = p.clock.Now(), now.DoneBytes
		}
		var rate, left int64
		if seconds := p.clock.Since(began).Seconds(); seconds > 0 {
			rate = int64(float64(now.DoneBytes-first) / seconds)
		}
		if rate > 0 {
			left = (now.TotalBytes - now.DoneBytes + rate - 1) / rate
		}
		write(now, rate, left)
	}
}

// percent of what is to be done, 99 at most: 100 is for what is ready.
func percent(p backup.Progress) int32 {
	if p.TotalBytes <= 0 {
		return 0
	}
	return int32(min(p.DoneBytes*100/p.TotalBytes, 99))
}

// progressText is "43 % of 2.1 GiB, 210 MiB/s, 6 s left".
func progressText(p backup.Progress, rate, left int64) string {
	text := fmt.Sprintf("%d %% of %s", percent(p), backingimage.SizeText(p.TotalBytes))
	if rate > 0 {
		text += fmt.Sprintf(", %s/s, %d s left", backingimage.SizeText(rate), left)
	}
	return text
}
