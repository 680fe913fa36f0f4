package fetch_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
)

// first gives only the first request this answer.
func first(answer http.HandlerFunc) func(*server) {
	return func(s *server) {
		s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
			if s.requests.Load() > 1 {
				return false
			}
			answer(w, r)
			return true
		}
	}
}

// firstCut cuts the first connection after 3 MiB, and lets change meddle with the other requests.
func firstCut(change func(*http.Request)) func(*server) {
	return func(s *server) {
		s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
			if s.requests.Load() == 1 {
				w = &cutting{w, 3 << 20}
			} else {
				change(r)
			}
			s.serve(w, r)
			return true
		}
	}
}

// pieces serves the whole image in pieces, with a pause after each, and its length only if told so.
func pieces(size int, pause time.Duration, length bool) func(*server) {
	return func(s *server) {
		s.meddle = func(w http.ResponseWriter, _ *http.Request) bool {
			if length {
				w.Header().Set("Content-Length", strconv.Itoa(len(s.content)))
			}
			for p := range slices.Chunk(s.content, size) {
				w.Write(p)
				w.(http.Flusher).Flush()
				time.Sleep(pause)
			}
			return true
		}
	}
}

func status(code int, header, value string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(header, value)
		w.WriteHeader(code)
	}
}

// misbehaving servers give the image in the end.
var misbehaving = map[string]func(*server){
	"well-behaved":               func(*server) {},
	"cuts five times":            func(s *server) { cutEach(s, 5, 1<<20+7) },
	"cuts without any validator": func(s *server) { s.tag = ""; cutEach(s, 2, 3<<20) },
	"cuts and knows no ranges":   firstCut(func(r *http.Request) { r.Header.Del("Range") }),
	"cuts and answers another range, once": func(s *server) {
		firstCut(func(r *http.Request) {
			if s.requests.Load() == 2 {
				r.Header.Set("Range", "bytes=100-")
			}
		})(s)
	},
	"cuts and gives short ranges": firstCut(func(r *http.Request) {
		from, found := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
		if n, err := strconv.Atoi(strings.TrimSuffix(from, "-")); found && err == nil {
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", n, n+2<<20))
		}
	}),
	"changes the file when it cuts": func(s *server) {
		after := s.content
		s.content = image(9, len(after))
		var once sync.Once
		firstCut(func(*http.Request) { once.Do(func() { s.content, s.tag = after, "new" }) })(s)
	},
	"does not tell the length": pieces(1<<20, 0, false),
	"is slow":                  pieces(100<<10, time.Millisecond, true),
	"without HEAD": func(s *server) {
		s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet {
				w.WriteHeader(http.StatusMethodNotAllowed)
			}
			return r.Method != http.MethodGet
		}
	},
	"stalls": first(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10000000")
		w.Write(make([]byte, 3<<20))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}),
	"answers 500 first":                  first(status(500, "X", "")),
	"answers 429 with Retry-After first": first(status(429, "Retry-After", "1")),
	"redirects to itself":                first(status(302, "Location", "/elsewhere")),
	"drops the connection first":         first(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
	"cuts every fifth connection":        every(5, func(s *server, w http.ResponseWriter, r *http.Request) { s.serve(&cutting{w, 300 << 10}, r) }),
	"fails every fifth time":             every(5, func(_ *server, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }),
	"stalls every sixth time": every(6, func(s *server, w http.ResponseWriter, r *http.Request) {
		s.serve(&holding{w, 100 << 10, r.Context().Done()}, r)
	}),
	"knows ranges once in a while": every(2, func(s *server, w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		s.serve(w, r)
	}),
	"wants one connection at a time": func(s *server) {
		var busy atomic.Bool
		s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
			if !busy.CompareAndSwap(false, true) {
				status(429, "Retry-After", "1")(w, r)
				return true
			}
			defer busy.Store(false)
			s.serve(w, r)
			return true
		}
	},
}

// every misbehaves each nth time, the first not among them.
func every(n int32, answer func(s *server, w http.ResponseWriter, r *http.Request)) func(*server) {
	return func(s *server) {
		s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
			if s.requests.Load()%n != 0 {
				return false
			}
			answer(s, w, r)
			return true
		}
	}
}

func TestMisbehavingServersGiveTheImageInTheEnd(t *testing.T) {
	content := image(1, 9<<20+77)
	large := image(1, 27<<20+77)
	files := map[string]struct{ file, content []byte }{"raw": {content, content}, "raw+gz": {mustPack(t, "gz", large), large}}
	for name := range misbehaving {
		for format, c := range files {
			for _, connections := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s, %s, over %d", name, format, connections), func(t *testing.T) {
					t.Parallel()
					s := &server{content: c.file, tag: "v1"}
					misbehaving[name](s)
					j := job(t, mustServe(t, s))
					if connections > 1 {
						inPieces(&j)
					}
					result, err := fetch.Run(context.Background(), j, nil)
					if err != nil {
						t.Fatal(err)
					}
					mustEqual(t, j.Dir, c.content, result)
					if result.Checksum != sha512Hex(c.file) || result.Format != format || result.SourceBytes != int64(len(c.file)) {
						t.Errorf("the result is %+v", result)
					}
				})
			}
		}
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

// changing serves another file each time, with its name or without, and never a whole one.
func changing(tagged bool) http.HandlerFunc {
	var requests atomic.Int32
	return func(w http.ResponseWriter, r *http.Request) {
		n := int(requests.Add(1))
		s := &server{content: image(byte(n), 8<<20+n*512)}
		if tagged {
			s.tag = strconv.Itoa(n)
		}
		s.serve(&cutting{w, 3 << 20}, r)
	}
}

// inPieces makes a job read over several connections.
func inPieces(j *fetch.Job) { j.Source = source.ParallelPieces(j.Source, 3, 512<<10) }

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
		{"JSON by its type", answer(200, "application/json; charset=utf-8", `{"error":"not found"}`), nil, backingimage.Invalid, "JSON"},
		{"401", answer(401, "text/plain", "no"), nil, backingimage.Precondition, "sourceParameters.secret"},
		{"redirects without an end", redirect("/image"), nil, backingimage.Precondition, "more than 10 times"},
		{"changes its file again and again", changing(true), nil, backingimage.Precondition, "changed while it was downloaded"},
		{"changes its file again and again, read in pieces", changing(true), inPieces, backingimage.Precondition, "changed while it was downloaded"},
		{"changes its file's size again and again, and names no version", changing(false), func(j *fetch.Job) { j.Checksum = sha512Hex(content) }, backingimage.Precondition, "changed while it was downloaded"},
		{"web page by its text", answer(200, "application/octet-stream", "<!doctype html><p>"), nil, backingimage.Invalid, "web page"},
		{"nothing", answer(200, "application/octet-stream", ""), nil, backingimage.Invalid, "empty"},
		{"redirect to loopback", redirect("http://127.0.0.2/image"), nil, backingimage.Precondition, "loopback"},
		{"redirect to metadata", redirect("http://169.254.169.254/"), nil, backingimage.Precondition, "metadata"},
		{"lz4", answer(200, "application/octet-stream", "\x04\x22\x4d\x18\x00"), nil, backingimage.Unsupported, "lz4"},
		{"JSON by its text", answer(200, "application/octet-stream", `{"message": "no such image"}`), nil, backingimage.Invalid, "JSON"},
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

// promising tells another length than the body has.
type promising struct {
	http.ResponseWriter
	length int
}

func (p *promising) WriteHeader(code int) {
	p.Header().Set("Content-Length", strconv.Itoa(p.length))
	p.ResponseWriter.WriteHeader(code)
}

func TestSourcesThatGiveNothingAreNotReady(t *testing.T) {
	content := image(1, 5<<20)
	var halves atomic.Int32
	for name, handler := range map[string]http.HandlerFunc{
		"hangs up each time": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"gives half and then hangs up each time": func(w http.ResponseWriter, r *http.Request) {
			if halves.Add(1) > 1 {
				panic(http.ErrAbortHandler)
			}
			(&server{content: content}).serve(&cutting{w, 3 << 20}, r)
		},
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
		"promises more than it has, in pieces too": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && r.Header.Get("Range") == "" {
				w = &promising{w, len(content) + 1000}
			}
			(&server{content: content, tag: "v1"}).serve(w, r)
		},
		"cuts each piece before its first byte": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				panic(http.ErrAbortHandler)
			}
			(&server{content: content, tag: "v1"}).serve(&cutting{w, 3 << 20}, r)
		},
		"gives another range than it says": func(w http.ResponseWriter, r *http.Request) {
			if from, found := strings.CutPrefix(r.Header.Get("Range"), "bytes="); found {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 1%s/%d", from, len(content)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(content[:100])
				return
			}
			(&server{content: content, tag: "v1"}).serve(&cutting{w, 3 << 20}, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := job(t, mustServe(t, handler))
			inPieces(&j)
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
