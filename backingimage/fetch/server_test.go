package fetch_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
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

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/source"
)

// newSource makes a source of a test server's URL: 127.0.0.1 is open to it, and nothing else of loopback.
func newSource(url string) (source.Source, error) {
	return source.NewHTTP(url, source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
}

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

// misbehaving servers that give the image in the end.
func misbehaving(s *server) map[string]func() {
	first := func(answer http.HandlerFunc) func() {
		return func() {
			s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
				if s.requests.Load() > 1 {
					return false
				}
				answer(w, r)
				return true
			}
		}
	}
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	return map[string]func(){
		"well-behaved": func() {},
		"without HEAD": func() {
			s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodGet {
					return false
				}
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
		},
		"cuts five times":            func() { cutEach(s, 5, 1<<20+7) },
		"cuts without any validator": func() { s.tag = ""; cutEach(s, 2, 3<<20) },
		"cuts and knows no ranges": func() {
			s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
				r.Header.Del("Range")
				if s.requests.Load() == 1 {
					w = &cutting{w, 3 << 20}
				}
				s.serve(w, r)
				return true
			}
		},
		"cuts and answers another range": func() {
			s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
				switch s.requests.Load() {
				case 1:
					w = &cutting{w, 3 << 20}
				case 2:
					r.Header.Set("Range", "bytes=100-")
				}
				s.serve(w, r)
				return true
			}
		},
		"cuts and gives short ranges": func() {
			s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
				if s.requests.Load() == 1 {
					w = &cutting{w, 3 << 20}
				} else if from, found := strings.CutPrefix(r.Header.Get("Range"), "bytes="); found {
					n, _ := strconv.Atoi(strings.TrimSuffix(from, "-"))
					r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", n, n+2<<20))
				}
				s.serve(w, r)
				return true
			}
		},
		"changes the file when it cuts": func() {
			before := s.content
			s.content = image(9, len(before))
			after, tag := before, "new"
			cutEach(s, 1, 3<<20)
			cut := s.meddle
			s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
				if s.requests.Load() > 1 {
					s.content, s.tag = after, tag
				}
				return cut(w, r)
			}
		},
		"stalls": first(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(s.content)))
			w.Write(s.content[:3<<20])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}),
		"does not tell the length": func() {
			s.meddle = func(w http.ResponseWriter, _ *http.Request) bool {
				for p := s.content; len(p) > 0; p = p[min(1<<20, len(p)):] {
					w.Write(p[:min(1<<20, len(p))])
					w.(http.Flusher).Flush()
				}
				return true
			}
		},
		"is slow": func() {
			s.meddle = func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Content-Length", strconv.Itoa(len(s.content)))
				for p := s.content; len(p) > 0; p = p[min(100<<10, len(p)):] {
					w.Write(p[:min(100<<10, len(p))])
					w.(http.Flusher).Flush()
					time.Sleep(time.Millisecond)
				}
				return true
			}
		},
		"answers 500 first":                  first(status(500)),
		"answers 429 with Retry-After first": first(status(429, "Retry-After", "1")),
		"redirects to itself":                first(status(302, "Location", "/elsewhere")),
		"drops the connection first":         first(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
	}
}

func TestMisbehavingServersGiveTheImageInTheEnd(t *testing.T) {
	content := image(1, 9<<20+77)
	for name := range misbehaving(&server{}) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &server{content: content, tag: "v1"}
			misbehaving(s)[name]()
			j := job(t, mustServe(t, s))
			result, err := fetch.Run(context.Background(), j, nil)
			if err != nil {
				t.Fatal(err)
			}
			mustEqual(t, j.Dir, content, result)
			if result.Checksum != sha512Hex(content) || result.Format != format.Raw || result.SourceBytes != int64(len(content)) {
				t.Errorf("the result is %+v", result)
			}
		})
	}
}

func TestACutConnectionGoesOnWhereItBroke(t *testing.T) {
	s := &server{content: image(1, 9<<20), tag: "v1"}
	cutEach(s, 4, 1<<20)
	j := job(t, mustServe(t, s))
	if _, err := fetch.Run(context.Background(), j, nil); err != nil {
		t.Fatal(err)
	}
	if again := s.served.Load() - int64(len(s.content)); again > 0 {
		t.Errorf("%d bytes were served again", again)
	}
}

// hopeless servers end an attempt for good, and leave nothing behind.
func TestHopelessSourcesEndTheAttemptForGood(t *testing.T) {
	content := image(1, 3<<20)
	answer := func(code int, kind, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(code)
			w.Write([]byte(body))
		}
	}
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	serve := func(p []byte) http.HandlerFunc { return (&server{content: p}).ServeHTTP }
	for _, c := range []struct {
		name    string
		handler http.HandlerFunc
		change  func(*fetch.Job)
		kind    backingimage.Kind
		says    string
	}{
		{"404", answer(404, "text/plain", "no"), nil, backingimage.NotFound, "404"},
		{"403", answer(403, "text/plain", "no"), nil, backingimage.Precondition, "403"},
		{"web page by its type", answer(200, "text/html", "hello"), nil, backingimage.Invalid, "web page"},
		{"web page by its text", answer(200, "application/octet-stream", "<!doctype html><p>"), nil, backingimage.Invalid, "web page"},
		{"nothing", answer(200, "application/octet-stream", ""), nil, backingimage.Invalid, "empty"},
		{"redirect to loopback", redirect("http://127.0.0.2/image"), nil, backingimage.Precondition, "loopback"},
		{"redirect to metadata", redirect("http://169.254.169.254/"), nil, backingimage.Precondition, "metadata"},
		{"gzip", answer(200, "application/octet-stream", "\x1f\x8b\x08\x00\x00"), nil, backingimage.Unsupported, "gzip"},
		{"wrong SHA-512", serve(content), func(j *fetch.Job) { j.Checksum = sha512Hex(nil) }, backingimage.Corrupt, sha512Hex(nil)},
		{"wrong SHA-256", serve(content), func(j *fetch.Job) { j.Checksum = strings.Repeat("ab", 32) }, backingimage.Corrupt, "sha256:abab"},
		{"bad checksum", serve(content), func(j *fetch.Job) { j.Checksum = "md5" }, backingimage.Invalid, "checksum: "},
		{"other content than before", serve(content), func(j *fetch.Job) { j.ContentDigest = "0123" }, backingimage.Corrupt, "serves something else"},
		{"more than the limit", serve(content), func(j *fetch.Job) { j.Limits.MaxVirtualBytes = 1 << 20 }, backingimage.OutOfRange, "over the limit"},
		{"more than the limit, unannounced", func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(content)
		}, func(j *fetch.Job) { j.Limits.MaxVirtualBytes = 1 << 20 }, backingimage.OutOfRange, "over the limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			j := job(t, mustServe(t, c.handler))
			if c.change != nil {
				c.change(&j)
			}
			_, err := fetch.Run(context.Background(), j, nil)
			if !backingimage.Is(err, c.kind) || !backingimage.Terminal(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v error %v, want %v with %q", backingimage.KindOf(err), err, c.kind, c.says)
			}
			mustBeGone(t, j.Dir)
		})
	}
}

func TestSourcesThatGiveNothingAreNotReady(t *testing.T) {
	content := image(1, 5<<20)
	for name, handler := range map[string]http.HandlerFunc{
		"always 503":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
		"asks to wait": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "600"); w.WriteHeader(429) },
		"promises more than it has": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)+1000))
			w.Write(content)
		},
		"always cuts, and knows no ranges": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(content)))
			(&cutting{w, 3 << 20}).Write(content)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := job(t, mustServe(t, handler))
			j.Patience = time.Second
			if _, err := fetch.Run(context.Background(), j, nil); !backingimage.Is(err, backingimage.NotReady) {
				t.Errorf("got %v error %v", backingimage.KindOf(err), err)
			}
			if _, err := os.Stat(j.Dir); err != nil {
				t.Errorf("nothing is left to go on from: %v", err)
			}
		})
	}
}

func TestGoodChecksumsAreAccepted(t *testing.T) {
	s := &server{content: image(1, 3<<20)}
	j := job(t, mustServe(t, s))
	j.Checksum = "SHA512:" + strings.ToUpper(sha512Hex(s.content))
	result, err := fetch.Run(context.Background(), j, nil)
	if err != nil {
		t.Fatal(err)
	}
	j.ContentDigest = result.ContentDigest
	if again, err := fetch.Run(context.Background(), j, nil); err != nil || again != result {
		t.Errorf("repeated, it gives %+v, %v", again, err)
	}
	if n := s.requests.Load(); n != 1 {
		t.Errorf("a finished copy was fetched again: %d requests", n)
	}
}

func TestProgressTellsSizesEarlyAndNeverGoesBack(t *testing.T) {
	s := &server{content: image(1, 9<<20)}
	var mu sync.Mutex
	var seen []fetch.Progress
	j := job(t, mustServe(t, s))
	if _, err := fetch.Run(context.Background(), j, func(p fetch.Progress) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
	}); err != nil {
		t.Fatal(err)
	}
	known := false
	for i, p := range seen {
		known = known || p.VirtualBytes == 9<<20 && p.SourceBytes == 9<<20 && p.Total == 9<<20 && p.Bytes < 1<<20
		if i > 0 && p.Bytes < seen[i-1].Bytes {
			t.Errorf("from %+v to %+v", seen[i-1], p)
		}
	}
	if !known {
		t.Errorf("sizes were not known before the first MiB: %+v", seen)
	}
}
