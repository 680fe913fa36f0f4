package process

import (
	"context"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

// Memory that a fetch or a full cache needed for a moment stays with the process for many minutes: a process that has nothing to do makes no
// garbage, so nothing is collected. Every trimEvery, what is not in use is given back if it is more than trimAbove bytes.
const (
	trimEvery = 30 * time.Second
	trimAbove = 8 << 20
)

// collectPercent is how much may be allocated, in percent of what is alive, until the next collection; half of what is usual. Most of what is alive
// in a fetch are buffers, of which there is nothing to collect and no pointer to follow: waiting for as much garbage again would save little.
const collectPercent = 50

// Memory is the Part that keeps memory small, and gives it back.
type Memory struct{}

// Run works until ctx ends. Whoever sets GOGC has his way.
func (Memory) Run(ctx context.Context) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectPercent)
	}
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if unused() > trimAbove {
				debug.FreeOSMemory()
			}
		}
	}
}

// unused are the bytes of the heap beyond what was alive at the last collection.
func unused() uint64 {
	samples := []runtimemetrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}, {Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(samples)
	held := samples[0].Value.Uint64() + samples[1].Value.Uint64() + samples[2].Value.Uint64()
	if live := samples[3].Value.Uint64(); held > live {
		return held - live
	}
	return 0
}
