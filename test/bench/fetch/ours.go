package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
)

// outcome is what one of our attempts measures of itself.
type outcome struct {
	Seconds, ConversionSeconds float64
	MemoryMiB                  float64 // peak resident memory over what the process had at its start
	RealBytes                  int64   // that the copy occupies
}

// measure picks the figure of an outcome that counts.
type measure func(outcome) (figure, error)

func total(o outcome) (figure, error)      { return figure(o.Seconds), nil }
func conversion(o outcome) (figure, error) { return figure(o.ConversionSeconds), nil }
func memory(o outcome) (figure, error)     { return figure(o.MemoryMiB), nil }

// sparseTotal is total, and an error when more than the data was written.
func (b *bench) sparseTotal(o outcome) (figure, error) {
	if most := b.sparseData() * 11 / 10; o.RealBytes > most {
		return 0, fmt.Errorf("the copy occupies %d bytes, more than %d", o.RealBytes, most)
	}
	return total(o)
}

// fetch is our side, as an agent does it by default.
func (b *bench) fetch(url string, which measure) func(context.Context) (figure, error) {
	return b.fetchOver("4", url, which)
}

// fetchOver is one attempt in a process of its own, over so many connections.
func (b *bench) fetchOver(connections, url string, which measure) func(context.Context) (figure, error) {
	return func(ctx context.Context) (figure, error) {
		cmd, err := self(ctx, roleFetch, url, filepath.Join(b.work, "ours"), connections)
		if err != nil {
			return 0, err
		}
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return 0, err
		}
		var o outcome
		if err := json.Unmarshal(out, &o); err != nil {
			return 0, err
		}
		return which(o)
	}
}

// self is this program in another role.
func self(ctx context.Context, role string, args ...string) (*exec.Cmd, error) {
	path, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, path, append([]string{"-role", role}, args...)...), nil
}

// fetchOnce is the process that makes one attempt.
func fetchOnce(ctx context.Context, url, dir, connections string) error {
	n, err := strconv.Atoi(connections)
	if err != nil {
		return err
	}
	src, err := source.NewHTTP(url, source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	if err != nil {
		return err
	}
	baseline, err := resident()
	if err != nil {
		return err
	}
	start := time.Now()
	var converting time.Time
	step := ""
	job := fetch.Job{Dir: dir, Image: "bench", ImageUID: "bench", Source: source.Parallel(src, n)}
	result, err := fetch.Run(ctx, job, func(p fetch.Progress) {
		if p.Step != step && p.Step == fetch.Converting {
			syscall.Sync() // the conversion is not to pay for the download
			converting = time.Now()
		}
		step = p.Step
	})
	if err != nil {
		return err
	}
	o := outcome{Seconds: time.Since(start).Seconds(), RealBytes: result.RealBytes}
	if !converting.IsZero() {
		o.ConversionSeconds = time.Since(converting).Seconds()
	}
	peak, err := peakResident()
	o.MemoryMiB = float64(peak-baseline) / (1 << 10)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(o)
}

// resident memory now, in KiB.
func resident() (int64, error) { return statusField("VmRSS:") }

// peakResident memory of the process's life, in KiB.
func peakResident() (int64, error) { return statusField("VmHWM:") }

func statusField(name string) (int64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, found := bytes.Cut(text, []byte(name))
	var value int64
	if _, err := fmt.Sscan(string(rest), &value); !found || err != nil {
		return 0, fmt.Errorf("read %s of this process: %w", name, err)
	}
	return value, nil
}
