package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

const testPiece = 64 << 10

// file serves content in one version, and counts.
type file struct {
	content               []byte
	meddle                func(w http.ResponseWriter, r *http.Request) bool // true when it answered
	requests, connections atomic.Int32
	running, most         atomic.Int32
	mu                    sync.Mutex
	ranges                []string
	server                *httptest.Server
}

func mustServeFile(tb testing.TB, size int, meddle func(f *file, w http.ResponseWriter, r *http.Request) bool) *file {
	tb.Helper()
	f := &file{content: make([]byte, size)}
	rand.NewChaCha8([32]byte{7}).Read(f.content)
	if meddle != nil {
		f.meddle = func(w http.ResponseWriter, r *http.Request) bool { return meddle(f, w, r) }
	}
	f.server = httptest.NewUnstartedServer(f)
	f.server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			f.connections.Add(1)
		}
	}
	f.server.Start()
	tb.Cleanup(f.server.Close)
	tb.Cleanup(f.server.CloseClientConnections)
	return f
}

func (f *file) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.requests.Add(1)
	for now := f.running.Add(1); ; {
		if most := f.most.Load(); now <= most || f.most.CompareAndSwap(most, now) {
			break
		}
	}
	defer f.running.Add(-1)
	f.mu.Lock()
	f.ranges = append(f.ranges, r.Header.Get("Range"))
	f.mu.Unlock()
	if f.meddle != nil && f.meddle(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *file) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"v1"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}

// quiet returns how many requests there were when no more came.
func (f *file) quiet() int32 {
	for {
		before := f.requests.Load()
		time.Sleep(50 * time.Millisecond)
		if f.requests.Load() == before && f.running.Load() == 0 {
			return before
		}
	}
}

// source of the file over so many connections.
func (f *file) source(tb testing.TB, connections int, o source.Options) source.Source {
	tb.Helper()
	o.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	s, err := source.NewHTTP(f.server.URL, o)
	if err != nil {
		tb.Fatal(err)
	}
	return source.ParallelPieces(s, connections, testPiece)
}

// cutAfter ends a connection after so many bytes of body.
type cutAfter struct {
	http.ResponseWriter
	left int
}

func (c *cutAfter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func TestPiecesAreReadInOrderOverFewConnections(t *testing.T) {
	for _, size := range []int{4 * testPiece, 40*testPiece + 17, 41 * testPiece} {
		for _, offset := range []int64{0, 1, testPiece + 5} {
			f := mustServeFile(t, size, notFirst(func(f *file, w http.ResponseWriter, r *http.Request) {
				time.Sleep(2 * time.Millisecond) // so that others come meanwhile
				f.serve(w, r)
			}))
			body, err := f.source(t, 4, source.Options{}).Open(context.Background(), offset, `"v1"`)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			if err != nil || body.Offset != offset || body.Bytes != int64(size) || !bytes.Equal(got, f.content[offset:]) {
				t.Errorf("%d bytes from %d: got %d bytes from %d of %d, %v", size, offset, len(got), body.Offset, body.Bytes, err)
			}
			if n, err := body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d, %v", n, err)
			}
			if err := body.Close(); err != nil {
				t.Error(err)
			}
			if n := f.connections.Load(); n > 10 { // one may be dialled just when another gets free
				t.Errorf("%d connections for %d requests", n, f.requests.Load())
			}
			if f.most.Load() > 5 || size > 30*testPiece && f.most.Load() < 2 {
				t.Errorf("%d requests at once", f.most.Load())
			}
		}
	}
}

func TestOneStreamIsReadWherePiecesCannotBe(t *testing.T) {
	for name, c := range map[string]struct {
		size        int
		connections int
		header      func(http.Header)
	}{
		"a small file":             {3 * testPiece, 4, nil},
		"one connection":           {9 * testPiece, 1, nil},
		"no validator":             {9 * testPiece, 4, func(h http.Header) { h.Del("ETag") }},
		"weak validator":           {9 * testPiece, 4, func(h http.Header) { h.Set("ETag", `W/"v1"`) }},
		"server that says no":      {9 * testPiece, 4, func(h http.Header) { h.Set("Accept-Ranges", "none") }},
		"server that says nothing": {9 * testPiece, 4, func(h http.Header) { h.Del("Accept-Ranges") }},
		"length that is not told":  {9 * testPiece, 4, func(h http.Header) { h.Del("Content-Length") }},
	} {
		t.Run(name, func(t *testing.T) {
			f := mustServeFile(t, c.size, func(f *file, w http.ResponseWriter, r *http.Request) bool {
				if c.header != nil {
					w = &headers{w, c.header}
				}
				f.serve(w, r)
				return true
			})
			body, err := f.source(t, c.connections, source.Options{}).Open(context.Background(), 0, "")
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, f.content) || f.requests.Load() != 1 {
				t.Errorf("%d bytes after %d requests, %v", len(got), f.requests.Load(), err)
			}
		})
	}
}

// headers changes an answer's headers at the last moment.
type headers struct {
	http.ResponseWriter
	change func(http.Header)
}

func (h *headers) WriteHeader(status int) {
	h.change(h.Header())
	h.ResponseWriter.WriteHeader(status)
}

// notFirst misbehaves from the second request on.
func notFirst(answer func(f *file, w http.ResponseWriter, r *http.Request)) func(*file, http.ResponseWriter, *http.Request) bool {
	return func(f *file, w http.ResponseWriter, r *http.Request) bool {
		if f.requests.Load() == 1 {
			return false
		}
		answer(f, w, r)
		return true
	}
}

func TestABrokenPieceIsAskedForAgainFromWhereItBroke(t *testing.T) {
	f := mustServeFile(t, 12*testPiece, notFirst(func(f *file, w http.ResponseWriter, r *http.Request) {
		if f.requests.Load()%3 == 0 {
			w = &cutAfter{w, testPiece / 4}
		}
		f.serve(w, r)
	}))
	body, err := f.source(t, 3, source.Options{}).Open(context.Background(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, f.content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	goesOn := func(asked string) bool {
		var at int
		_, err := fmt.Sscanf(asked, "bytes=%d-", &at)
		return err == nil && at%testPiece == testPiece/4
	}
	if !slices.ContainsFunc(f.ranges, goesOn) {
		t.Errorf("no piece went on where it broke: %s", f.ranges)
	}
}

func TestAPieceThatCannotBeHadEndsTheBodyAfterWhatCame(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(f *file, w http.ResponseWriter, r *http.Request)
		most   int32 // requests
		says   string
		after  time.Duration
		alone  bool // one stream is read from then on
	}{
		"the file changed": {func(f *file, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v2"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
		}, 4, "perhaps it changed", 0, true},
		"a piece of another version": {func(f *file, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("If-Range")
			w.Header().Set("ETag", `"v2"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
		}, 4, "perhaps it changed", 0, true},
		"another range": {func(f *file, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=7-100")
			f.serve(w, r)
		}, 4, "perhaps it changed", 0, true},
		"no range after all": {func(f *file, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			f.serve(w, r)
		}, 4, "perhaps it changed", 0, true},
		"asks for less": {func(_ *file, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3")
			w.WriteHeader(http.StatusServiceUnavailable)
		}, 4, "503", 3 * time.Second, true},
		"has enough":   {func(_ *file, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, 4, "429", 0, true},
		"forbids it":   {func(_ *file, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, 4, "403", 0, true},
		"fails":        {func(_ *file, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, 10, "502", 0, true},
		"hangs up":     {func(*file, http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 20, "cannot be reached", 0, false},
		"falls silent": {func(_ *file, w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 4, "no byte arrived", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := mustServeFile(t, 8*testPiece, notFirst(c.answer))
			s := f.source(t, 3, source.Options{StallTimeout: 300 * time.Millisecond})
			body, err := s.Open(context.Background(), 0, "")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			if !bytes.Equal(got, f.content[:testPiece]) {
				t.Errorf("%d bytes came first", len(got))
			}
			if !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), c.says) || source.RetryAfter(err) != c.after {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if _, again := body.Read(make([]byte, 1)); again != err {
				t.Errorf("the next read gives %v", again)
			}
			body.Close()
			if n := f.requests.Load(); n > c.most {
				t.Errorf("%d requests", n)
			}
			before := f.quiet()
			f.meddle = nil
			if body, err = s.Open(context.Background(), testPiece, `"v1"`); err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, f.content[testPiece:]) {
				t.Errorf("afterwards: %d bytes, %v", len(got), err)
			}
			if alone := f.requests.Load() == before+1; alone != c.alone {
				t.Errorf("%d requests afterwards", f.requests.Load()-before)
			}
		})
	}
}

func TestPiecesEndWithTheirContextAndWhenClosed(t *testing.T) {
	hang := notFirst(func(_ *file, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithCancel(context.Background())
	body, err := mustServeFile(t, 8*testPiece, hang).source(t, 3, source.Options{}).Open(ctx, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(body, make([]byte, testPiece)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	body.Close()
	if body, err = mustServeFile(t, 8*testPiece, hang).source(t, 3, source.Options{}).Open(context.Background(), 0, ""); err != nil {
		t.Fatal(err)
	}
	body.Close() // returns although pieces are on their way
}

func TestAReaderThatPausesHoldsFewPieces(t *testing.T) {
	f := mustServeFile(t, 40*testPiece, nil)
	body, err := f.source(t, 3, source.Options{StallTimeout: 100 * time.Millisecond}).Open(context.Background(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	time.Sleep(300 * time.Millisecond)
	if n := f.requests.Load(); n > 5 {
		t.Errorf("%d pieces were asked for before one was read", n)
	}
	if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, f.content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
