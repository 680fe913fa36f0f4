package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

const text = "0123456789abcdefghijklmnopqrstuvwxyz"

// mustOpen opens a source on a handler's server.
func mustSource(tb testing.TB, h http.HandlerFunc, o source.Options) *source.HTTP {
	tb.Helper()
	server := httptest.NewServer(h)
	tb.Cleanup(server.Close)
	if o.AllowCIDRs == nil {
		o.AllowCIDRs = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	s, err := source.NewHTTP(server.URL+"/image?token=hunter2", o)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func serve(header map[string]string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for key, value := range header {
			w.Header().Set(key, value)
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	}
}

func partial(contentRange, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "" {
			serve(nil)(w, r)
			return
		}
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		io.WriteString(w, body)
	}
}

func TestOpenContinuesOrBeginsAnewButNeverMixes(t *testing.T) {
	modified := "Mon, 02 Jan 2006 15:04:05 GMT"
	for _, c := range []struct {
		name      string
		handler   http.HandlerFunc
		validator string
		offset    int64 // that Open answers with, when asked for 10
	}{
		{"strong tag that fits", serve(map[string]string{"ETag": `"a"`}), `"a"`, 10},
		{"strong tag that changed", serve(map[string]string{"ETag": `"b"`}), `"a"`, 0},
		{"date that changed", serve(map[string]string{"Last-Modified": modified}), "Sun, 01 Jan 2006 15:04:05 GMT", 0},
		{"no validator", serve(nil), "", 10},
		{"no ranges", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }, "", 0},
		{"a range that begins elsewhere", partial("bytes 0-35/36", text), "", 0},
		{"a range that begins later", partial("bytes 11-35/36", text[11:]), "", 0},
		{"a range of nothing", partial("", text[10:]), "", 0},
		{"a range that is none", partial("bytes x-y/z", text[10:]), "", 0},
		{"a range beyond its own end", partial("bytes 10-99/36", text[10:]), "", 0},
		{"a range without the size of the whole", partial("bytes 10-35/*", text[10:]), "", 0},
		{"a range of another length than its body", partial("bytes 10-20/36", text[10:]), "", 0},
		{"a range that ends early", partial("bytes 10-20/36", text[10:21]), "", 10},
		{"a range that cannot be satisfied", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			serve(nil)(w, r)
		}, "", 0},
		{"the tail of another version, whatever was asked", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"b"`)
			partial("bytes 10-35/36", text[10:])(w, r)
		}, `"a"`, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			body, err := mustSource(t, c.handler, source.Options{}).Open(context.Background(), 10, c.validator)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			got, err := io.ReadAll(body)
			if err != nil || body.Offset != c.offset || !strings.HasPrefix(text[c.offset:], string(got)) || len(got) == 0 {
				t.Errorf("offset %d, %q, %v", body.Offset, got, err)
			}
		})
	}
}

func TestOpenNamesTheVersion(t *testing.T) {
	old := "Mon, 02 Jan 2006 15:04:05 GMT"
	for name, c := range map[string]struct {
		header map[string]string
		want   string
	}{
		"strong tag":           {map[string]string{"ETag": `"a"`, "Last-Modified": old}, `"a"`},
		"weak tag":             {map[string]string{"ETag": `W/"a"`}, ""},
		"date":                 {map[string]string{"Last-Modified": old}, old},
		"date of this second":  {map[string]string{"Last-Modified": old, "Date": old}, ""},
		"nothing":              {nil, ""},
		"weak tag beside date": {map[string]string{"ETag": `W/"a"`, "Last-Modified": old}, old},
	} {
		body, err := mustSource(t, serve(c.header), source.Options{}).Open(context.Background(), 0, "")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if body.Validator != c.want || body.Bytes != int64(len(text)) {
			t.Errorf("%s: got %q, %d bytes", name, body.Validator, body.Bytes)
		}
		body.Close()
	}
}

func TestAnswersAreClassified(t *testing.T) {
	for _, c := range []struct {
		status int
		kind   backingimage.Kind
	}{
		{400, backingimage.Precondition}, {401, backingimage.Precondition}, {403, backingimage.Precondition}, {404, backingimage.NotFound}, {405, backingimage.Precondition}, {410, backingimage.NotFound},
		{408, backingimage.NotReady}, {425, backingimage.NotReady}, {429, backingimage.NotReady}, {500, backingimage.NotReady}, {503, backingimage.NotReady}, {204, backingimage.Precondition}, {304, backingimage.Precondition},
	} {
		s := mustSource(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(c.status)
		}, source.Options{})
		_, err := s.Open(context.Background(), 0, "")
		if !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), fmt.Sprint(c.status)) {
			t.Errorf("%d: got %v error %v", c.status, backingimage.KindOf(err), err)
		}
		if after := source.RetryAfter(err); (after == 7*time.Second) != (c.kind == backingimage.NotReady) {
			t.Errorf("%d: to be tried after %s", c.status, after)
		}
		if strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%d: the message tells the secret: %v", c.status, err)
		}
	}
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		header map[string]string
		says   string
	}{
		"web page":              {map[string]string{"Content-Type": "text/html; charset=utf-8"}, "web page"},
		"JSON":                  {map[string]string{"Content-Type": "application/json"}, "JSON document"},
		"compressed in transit": {map[string]string{"Content-Encoding": "gzip"}, "Content-Encoding"},
	} {
		_, err := mustSource(t, serve(c.header), source.Options{}).Open(context.Background(), 0, "")
		if !backingimage.Terminal(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDeniedAddressesAreNotReached(t *testing.T) {
	reached := false
	s := mustSource(t, func(http.ResponseWriter, *http.Request) { reached = true }, source.Options{AllowCIDRs: []netip.Prefix{}})
	_, err := s.Open(context.Background(), 0, "")
	if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "loopback") || !strings.Contains(err.Error(), "--allow-source-cidr") || reached {
		t.Errorf("reached %t, %v", reached, err)
	}
}

func TestRedirectsAreCheckedLikeTheFirstAddress(t *testing.T) {
	var target string
	s := mustSource(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, http.StatusFound) }, source.Options{})
	for to, says := range map[string]string{
		"http://127.0.0.1:1/":                  "cannot be reached",
		"http://[::1]:1/hunter2?token=hunter2": "loopback",
		"http://169.254.169.254/latest":        "metadata",
		"file:///etc/passwd":                   "file",
		"/image?token=hunter2":                 "more than 10 times",
	} {
		target = to
		_, err := s.Open(context.Background(), 0, "")
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v, want %q", to, err, says)
		}
	}
}

func TestRedirectsAreFollowed(t *testing.T) {
	s := mustSource(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Referer() != "" {
			t.Errorf("the next server is told %q", r.Referer())
		}
		if r.URL.Path == "/image" {
			http.Redirect(w, r, "/mirror", http.StatusFound)
			return
		}
		serve(nil)(w, r)
	}, source.Options{})
	body, err := s.Open(context.Background(), 30, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || string(got) != text[30:] {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestAStallEndsTheConnection(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"before the answer": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"in the middle": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, text)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustSource(t, handler, source.Options{StallTimeout: 50 * time.Millisecond})
			body, err := s.Open(context.Background(), 0, "")
			if err == nil {
				defer body.Close()
				_, err = io.ReadAll(body)
			}
			if !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), "no byte arrived") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAReaderThatPausesIsNoStall(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Now())
	s := mustSource(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, bytes.NewReader(make([]byte, 16<<20))) }, source.Options{Clock: clock})
	body, err := s.Open(context.Background(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	first := make([]byte, 1<<20)
	if _, err := io.ReadFull(body, first); err != nil {
		t.Fatal(err)
	}
	clock.Step(time.Hour)
	if n, err := io.Copy(io.Discard, body); err != nil || n != 15<<20 {
		t.Errorf("%d bytes more, %v", n, err)
	}
}

func TestTheCallersEndIsTheCallers(t *testing.T) {
	s := mustSource(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, source.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Open(ctx, 0, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestIdentityTellsURLsApartAndDescriptionHidesSecrets(t *testing.T) {
	mustNew := func(raw string) *source.HTTP {
		s, err := source.NewHTTP(raw, source.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := mustNew("https://host/x?token=one"), mustNew("https://host/x?token=two")
	if a.Identity() == b.Identity() || a.Identity() != mustNew("https://host/x?token=one").Identity() {
		t.Error("identities do not tell them apart")
	}
	if u, err := url.Parse(a.String()); err != nil || u.Query().Get("token") != "redacted" {
		t.Errorf("described as %s", a)
	}
}
