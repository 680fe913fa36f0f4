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
	"syscall"
	"time"

	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
)

// outcome is what one of our attempts measures of itself.
type outcome struct {
	Seconds, ConversionSeconds float64
	MemoryMiB                  float64 // peak resident memory over what the process had at its start
}

func total(o outcome) figure      { return figure(o.Seconds) }
func conversion(o outcome) figure { return figure(o.ConversionSeconds) }
func memory(o outcome) figure     { return figure(o.MemoryMiB) }

// fetch is our side: one attempt in a process of its own, and the figure of it that counts.
func (b *bench) fetch(name string, which func(outcome) figure) func(context.Context) (figure, error) {
	return func(ctx context.Context) (figure, error) {
		cmd, err := self(ctx, roleFetch, b.url+name, filepath.Join(b.work, "ours"))
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
		return which(o), nil
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
func fetchOnce(ctx context.Context, url, dir string) error {
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
	_, err = fetch.Run(ctx, fetch.Job{Dir: dir, Image: "bench", ImageUID: "bench", Source: src}, func(p fetch.Progress) {
		if p.Step != step && p.Step == fetch.Converting {
			syscall.Sync() // the conversion is not to pay for the download
			converting = time.Now()
		}
		step = p.Step
	})
	if err != nil {
		return err
	}
	o := outcome{Seconds: time.Since(start).Seconds()}
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
