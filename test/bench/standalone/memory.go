package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// memoryBudget of a process that imports, in MiB.
const memoryBudget = 200

// measureMemory watches the process's resident memory while it imports a dense image.
func measureMemory(ctx context.Context, p *process, w *web, size int64) error {
	idle, err := p.resident()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		done <- p.cli("image", "create", "big", "--url", w.path(size, size), "--wait", "--timeout", "30m")
	}()
	var samples []float64
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil || len(samples) < 3 {
				return fmt.Errorf("import, after %d samples of memory: %w", len(samples), err)
			}
			third := len(samples) / 3
			highest := highestOf(samples)
			first, last := highestOf(samples[:third]), highestOf(samples[2*third:])
			row(fmt.Sprintf("resident memory while importing %d GiB : budget (idle: %s)", size/gib, mib(idle)), mib(highest), mib(memoryBudget), highest/memoryBudget, 1)
			row("resident memory, last third of the import : first third", mib(last), mib(first), last/first, 1.10)
			return nil
		case <-tick.C:
			now, err := p.resident()
			if err != nil {
				return err
			}
			samples = append(samples, now)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resident is the process's resident memory in MiB.
func (p *process) resident() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var kib float64
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("no VmRSS of process %d", p.cmd.Process.Pid)
}

func highestOf(samples []float64) float64 {
	highest := 0.0
	for _, s := range samples {
		highest = max(highest, s)
	}
	return highest
}

func mib(v float64) string { return fmt.Sprintf("%.0f MiB", v) }
