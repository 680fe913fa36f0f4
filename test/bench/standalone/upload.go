package main

import (
	"crypto/sha512"
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

// rival is a plain upload: curl -T to a server that writes the file to the same disk and syncs it.
type rival struct {
	name  string
	path  string // where its server is asked for it
	bound string
	took  []time.Duration
	ratio []float64
}

// measureUpload uploads a dense file, and copies it over loopback without encryption, and with no more than one hash.
func measureUpload(p *process, size int64) error {
	file := p.path("upload.raw")
	if err := writeArithmetic(file, size); err != nil {
		return err
	}
	defer os.Remove(file)
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /plain", func(rw http.ResponseWriter, r *http.Request) { keep(rw, r, p.path("data/disk/pool/rival")) })
	mux.HandleFunc("PUT /hashed", func(rw http.ResponseWriter, r *http.Request) {
		r.Body = io.NopCloser(io.TeeReader(r.Body, sha512.New()))
		keep(rw, r, p.path("data/disk/pool/rival"))
	})
	server, err := serveWith(mux)
	if err != nil {
		return err
	}
	defer server.Close()
	rivals := []*rival{
		{name: "curl -T to the same disk, synced", path: "/plain", bound: fmt.Sprintf("%.2f", uploadBound)},
		{name: "the same with SHA-512", path: "/hashed", bound: "-"},
	}
	var ours []time.Duration
	for i := range uploadRuns {
		our, err := uploadOnce(p, file, fmt.Sprintf("upload-%d", i))
		if err != nil {
			return err
		}
		ours = append(ours, our)
		for _, r := range rivals {
			if err := r.run(file, server.url, our); err != nil {
				return err
			}
		}
	}
	for _, r := range rivals {
		fmt.Printf("upload %d MiB until ready : %s\t%s\t%s\t%.2f\t%s\n", size>>20, r.name, round(median(ours)), round(median(r.took)), slices.Sorted(slices.Values(r.ratio))[uploadRuns/2], r.bound)
	}
	return nil
}

// uploadOnce returns how long an upload takes until its image is ready.
func uploadOnce(p *process, file, name string) (time.Duration, error) {
	took, err := timed(func() error { return p.cli("image", "upload", file, "--name", name) })
	if err != nil {
		return 0, err
	}
	return took, p.cli("image", "rm", name)
}

func (r *rival) run(file, url string, ours time.Duration) error {
	took, err := timed(func() error { return command("curl", "-sSf", "-T", file, url+r.path) })
	r.took, r.ratio = append(r.took, took), append(r.ratio, ours.Seconds()/took.Seconds())
	return err
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
