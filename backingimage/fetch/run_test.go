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
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
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
		firstCut(func(*http.Request) { s.content, s.tag = after, "new" })(s)
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
}

func TestMisbehavingServersGiveTheImageInTheEnd(t *testing.T) {
	content := image(1, 9<<20+77)
	large := image(1, 27<<20+77)
	for name := range misbehaving {
		for format, c := range map[string]struct{ file, content []byte }{"raw": {content, content}, "raw+gz": {mustPack(t, "gz", large), large}} {
			t.Run(name+", "+format, func(t *testing.T) {
				t.Parallel()
				s := &server{content: c.file, tag: "v1"}
				misbehaving[name](s)
				j := job(t, mustServe(t, s))
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
