package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

// web serves files that exist only as arithmetic: /SIZE/DATA is a file of SIZE bytes of which the first DATA bytes of each
// of 64 equal parts, together DATA, are random and the rest zeros.
type web struct {
	*http.Server
	url string
}

const parts = 64

func serve() (*web, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{size}/{data}", file)
	return serveWith(mux)
}

// serveFile serves one file of the disk under every path.
func serveFile(path string) (*web, error) {
	return serveWith(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { http.ServeFile(rw, r, path) }))
}

func serveWith(h http.Handler) (*web, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &web{url: "http://" + l.Addr().String(), Server: &http.Server{Handler: h}}
	go w.Serve(l) // ends with Close
	return w, nil
}

func (w *web) path(size, data int64) string { return fmt.Sprintf("%s/%d/%d", w.url, size, data) }

func file(rw http.ResponseWriter, r *http.Request) {
	size, err := strconv.ParseInt(r.PathValue("size"), 10, 64)
	data, derr := strconv.ParseInt(r.PathValue("data"), 10, 64)
	if err != nil || derr != nil {
		http.Error(rw, "want /SIZE/DATA", http.StatusBadRequest)
		return
	}
	rw.Header().Set("ETag", fmt.Sprintf(`"%d-%d"`, size, data))
	http.ServeContent(rw, r, "disk.raw", time.Time{}, &arithmetic{size: size, data: data, pattern: pattern()})
}

// pattern is a MiB of random bytes; a MiB of the file is the pattern, turned by the MiB's number, so that no two are equal.
func pattern() []byte {
	p := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

type arithmetic struct {
	size, data, at int64
	pattern        []byte
}

func (a *arithmetic) Seek(offset int64, whence int) (int64, error) {
	a.at = offset + []int64{0, a.at, a.size}[whence]
	return a.at, nil
}

func (a *arithmetic) Read(p []byte) (int, error) {
	if a.at >= a.size {
		return 0, io.EOF
	}
	part, mib := a.size/parts, int64(1<<20)
	end := min(a.at/mib*mib+mib, a.size) // within one MiB
	n := int(min(int64(len(p)), end-a.at))
	if a.at%part < a.data/parts {
		turn := (a.at + a.at/mib*4097) % mib
		n = copy(p[:n], a.pattern[turn:])
	} else {
		clear(p[:n])
	}
	a.at += int64(n)
	return n, nil
}
