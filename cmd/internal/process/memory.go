package process

import (
	"context"
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

// Memory is the Part that gives memory back.
type Memory struct{}

// Run works until ctx ends.
func (Memory) Run(ctx context.Context) error {
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
