package nodetest

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// Web serves one file, counts what it gave, and fails or halts when told.
type Web struct {
	*httptest.Server
	Content []byte
	Served  atomic.Int64
	Asked   atomic.Int64  // requests
	Fail    atomic.Bool   // answer 503
	Hold    chan struct{} // when set before the first request: halt after a quarter until it is closed
}

// NewWeb serves a file of that many bytes until the test ends: random in its first half, a hole in its second.
func NewWeb(tb testing.TB, size int) *Web {
	content := make([]byte, size)
	seed := [32]byte{byte(size), byte(size >> 8), byte(size >> 16)}
	_, _ = rand.NewChaCha8(seed).Read(content[:size/2])
	return NewWebOf(tb, content)
}

// NewWebOf serves content until the test ends.
func NewWebOf(tb testing.TB, content []byte) *Web {
	w := &Web{Content: content}
	w.Server = httptest.NewServer(w)
	tb.Cleanup(w.Close)
	return w
}

// SHA512 of the file, in hexadecimal.
func (w *Web) SHA512() string {
	sum := sha512.Sum512(w.Content)
	return hex.EncodeToString(sum[:])
}

// ServeHTTP implements http.Handler.
func (w *Web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.Asked.Add(1)
	if w.Fail.Load() {
		http.Error(rw, "later", http.StatusServiceUnavailable)
		return
	}
	rw.Header().Set("ETag", `"v1"`)
	http.ServeContent(&counted{rw, w, r}, r, "disk", time.Time{}, bytes.NewReader(w.Content))
}

type counted struct {
	http.ResponseWriter
	web     *Web
	request *http.Request
}

func (c *counted) Write(p []byte) (int, error) {
	if c.web.Hold != nil && c.web.Served.Load() > int64(len(c.web.Content)/4) {
		select {
		case <-c.web.Hold:
		case <-c.request.Context().Done():
			return 0, c.request.Context().Err()
		}
	}
	n, err := c.ResponseWriter.Write(p)
	c.web.Served.Add(int64(n))
	return n, err
}
