package fetch_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/source"
)

// newSource makes a source of a test server's URL: 127.0.0.1 is open to it, and nothing else of loopback. It is read in pieces
// if the URL ends in piecesQuery.
func newSource(url string) (source.Source, error) {
	s, err := source.NewHTTP(url, source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	if err != nil || !strings.HasSuffix(url, piecesQuery) {
		return s, err
	}
	return source.ParallelPieces(s, 3, 512<<10), nil
}

const piecesQuery = "?pieces"

// mustSource makes a source that takes half a second for a stall.
func mustSource(tb testing.TB, url string) source.Source {
	tb.Helper()
	s, err := source.NewHTTP(url, source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, StallTimeout: 500 * time.Millisecond})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// mustServe starts a server and returns its URL.
func mustServe(tb testing.TB, h http.Handler) string {
	tb.Helper()
	server := httptest.NewServer(h)
	tb.Cleanup(server.CloseClientConnections)
	tb.Cleanup(server.Close)
	return server.URL + "/image"
}

// image makes bytes as images have them: data, and zeros between.
func image(seed byte, n int) []byte {
	r := rand.NewChaCha8([32]byte{seed})
	p := make([]byte, n)
	for at := 0; at < n; at += 300 << 10 {
		r.Read(p[at:min(at+100<<10, n)])
	}
	return p
}

// server serves content as well-behaved ones do, and can be made to misbehave.
type server struct {
	content  []byte
	tag      string                                            // ETag; none when empty
	meddle   func(w http.ResponseWriter, r *http.Request) bool // returns true when it answered
	requests atomic.Int32
	served   atomic.Int64
	busy     sync.RWMutex // held for reading by each request
}

// behave waits for the requests that are under way, makes the server behave otherwise, and counts bytes from 0.
func (s *server) behave(meddle func(http.ResponseWriter, *http.Request) bool) {
	s.busy.Lock()
	defer s.busy.Unlock()
	s.meddle = meddle
	s.served.Store(0)
}

// heal makes the server behave well.
func (s *server) heal() { s.behave(nil) }

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.busy.RLock()
	defer s.busy.RUnlock()
	s.requests.Add(1)
	if s.meddle != nil && s.meddle(w, r) {
		return
	}
	s.serve(w, r)
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	if s.tag != "" {
		w.Header().Set("ETag", strconv.Quote(s.tag))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&counter{w, &s.served}, r, "", time.Time{}, bytes.NewReader(s.content))
}

// counter counts the bytes of bodies.
type counter struct {
	http.ResponseWriter
	bytes *atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.bytes.Add(int64(n))
	return n, err
}

// cutting ends each connection after so many bytes of body.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// cutEach cuts the first times connections after so many bytes each.
func cutEach(s *server, times int32, after int) {
	s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		if s.requests.Load() > times {
			return false
		}
		s.serve(&cutting{w, after}, r)
		return true
	}
}

// job fetches from a URL, in no hurry and with no patience.
func job(tb testing.TB, url string) fetch.Job {
	return fetch.Job{
		Dir: filepath.Join(tb.TempDir(), "staging"), Image: "fedora", ImageUID: "uid", Source: mustSource(tb, url),
		Options: fetch.Options{Patience: 20 * time.Second, CheckpointBytes: 4 << 20},
	}
}

// childJob is a job that a test shares with a process that it kills.
func childJob(dir string, s source.Source) fetch.Job {
	return fetch.Job{Dir: dir, Image: "fedora", ImageUID: "uid", Source: s, Options: fetch.Options{CheckpointBytes: 4 << 20}}
}

// mustEqual checks that a finished directory holds content, padded, and nothing else.
func mustEqual(tb testing.TB, dir string, content []byte, result fetch.Result) {
	tb.Helper()
	got, err := os.ReadFile(filepath.Join(dir, disk.ImageFile))
	if err != nil {
		tb.Fatal(err)
	}
	padded := append(bytes.Clone(content), make([]byte, format.Padded(int64(len(content)))-int64(len(content)))...)
	if !bytes.Equal(got, padded) {
		tb.Errorf("the content differs: %d bytes, want %d", len(got), len(padded))
	}
	if err := fetch.Verify(context.Background(), dir, nil); err != nil {
		tb.Error(err)
	}
	record, err := fetch.Load(dir)
	if err != nil || record.Result != result {
		tb.Errorf("the record is %+v, %v", record, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		tb.Errorf("the directory holds %v, %v", entries, err)
	}
}

func mustBeGone(tb testing.TB, dir string) {
	tb.Helper()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		tb.Errorf("%s is left behind (%v)", dir, err)
	}
}

func sha256Hex(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

func sha512Hex(p []byte) string {
	sum := sha512.Sum512(p)
	return hex.EncodeToString(sum[:])
}
