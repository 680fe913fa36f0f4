package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// imageServer is a real server of files that the cluster's nodes reach. It can be told to ask who is there, and to hold a download midway.
type imageServer struct {
	url string

	mu    sync.Mutex
	files map[string]*servedFile
}

// servedFile is a file and how it is served.
type servedFile struct {
	data     []byte
	user     string // with password; "": everybody
	password string
	gate     chan struct{} // until it is closed, hardly a byte beyond the middle is sent; nil: none is held back

	mu       sync.Mutex
	requests int
	sent     int64
}

func serveImages(address string) (*imageServer, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve images: %w", err)
	}
	s := &imageServer{url: "http://" + l.Addr().String(), files: map[string]*servedFile{}}
	go http.Serve(l, s)
	return s, nil
}

// serve offers a file until the test ends, and returns its URL.
func (s *imageServer) serve(t testing.TB, name string, f *servedFile) string {
	t.Helper()
	path := "/" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) + "/" + name
	s.mu.Lock()
	s.files[path] = f
	s.mu.Unlock()
	t.Cleanup(func() {
		s.mu.Lock()
		delete(s.files, path)
		s.mu.Unlock()
	})
	return s.url + path
}

func (s *imageServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	f := s.files[r.URL.Path]
	s.mu.Unlock()
	if f == nil {
		http.NotFound(w, r)
		return
	}
	if user, password, _ := r.BasicAuth(); user != f.user || password != f.password {
		w.Header().Set("WWW-Authenticate", `Basic realm="images"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	f.mu.Lock()
	f.requests++
	f.mu.Unlock()
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, len(f.data)))
	http.ServeContent(w, r, "", time.Time{}, &heldReader{Reader: bytes.NewReader(f.data), file: f, ended: r.Context().Done()})
}

// times is how often the file's bytes were asked for, and how many were sent.
func (f *servedFile) traffic() (requests int, sent int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests, f.sent
}

const dripEvery = 10 * time.Second

// heldReader stops in the middle of the file until the gate is closed, but for a byte now and then, so that it is a slow source and no dead one.
type heldReader struct {
	*bytes.Reader
	file  *servedFile
	ended <-chan struct{}
}

func (h *heldReader) Read(b []byte) (int, error) {
	middle := h.Size() / 2
	if at := h.Size() - int64(h.Len()); h.file.gate != nil {
		if at >= middle {
			select {
			case <-h.file.gate:
			case <-h.ended:
				return 0, io.ErrUnexpectedEOF
			case <-time.After(dripEvery):
				b = b[:1]
			}
		} else if int64(len(b)) > middle-at {
			b = b[:middle-at]
		}
	}
	n, err := h.Reader.Read(b)
	h.file.mu.Lock()
	h.file.sent += int64(n)
	h.file.mu.Unlock()
	return n, err
}

// forget answers every URL with 404 from now on.
func (s *imageServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.files)
}
