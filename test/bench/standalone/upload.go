package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// uploadBound is the issue's: at least 0.8 of a plain copy's speed.
const uploadBound = 1.25

// uploadRuns of each side, turn and turn about; the median ratio counts.
const uploadRuns = 3

// measureUpload uploads a dense file, and copies it over loopback without anything else.
func measureUpload(p *process, size int64) error {
	file := p.path("upload.raw")
	if err := writeArithmetic(file, size); err != nil {
		return err
	}
	defer os.Remove(file)
	server, err := serveWith(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { keep(rw, r, p.path("data/disk/pool/rival")) }))
	if err != nil {
		return err
	}
	defer server.Close()
	var ours, rivals []time.Duration
	var ratios []float64
	for i := range uploadRuns {
		rival, err := timed(func() error { return command("curl", "-sSf", "-T", file, server.url+"/") })
		if err != nil {
			return err
		}
		name := fmt.Sprintf("upload-%d", i)
		our, err := timed(func() error { return p.cli("image", "upload", file, "--name", name) })
		if err != nil {
			return err
		}
		if err := p.cli("image", "rm", name); err != nil {
			return err
		}
		ours, rivals, ratios = append(ours, our), append(rivals, rival), append(ratios, our.Seconds()/rival.Seconds())
	}
	row(fmt.Sprintf("upload %d MiB until ready : curl -T to the same disk, synced", size>>20), round(median(ours)), round(median(rivals)), slices.Sorted(slices.Values(ratios))[uploadRuns/2], uploadBound)
	return nil
}

// keep writes what a request brings to a file, synced, and removes it.
func keep(rw http.ResponseWriter, r *http.Request, path string) {
	f, err := os.Create(path)
	if err == nil {
		defer os.Remove(path)
		defer f.Close()
		_, err = io.Copy(f, r.Body)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
	}
}

func writeArithmetic(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, &arithmetic{size: size, data: size, pattern: pattern()}); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return f.Sync()
}

// timed runs a command and returns how long it took.
func timed(do func() error) (time.Duration, error) {
	began := time.Now()
	err := do()
	return time.Since(began), err
}
