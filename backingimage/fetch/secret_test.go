package fetch_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/sourcetest"
)

// hidden is in every secret of these tests, in one way or another.
const hidden = "hunter2"

// failing servers each fail in their own way, and return their address. They all know no more than what they are told.
var failing = map[string]func(testing.TB) string{
	"401": func(tb testing.TB) string { return mustServe(tb, status(401, "WWW-Authenticate", `Basic realm="x"`)) },
	"500": func(tb testing.TB) string { return mustServe(tb, status(500, "X", "")) },
	"cut": func(tb testing.TB) string {
		s := &server{content: image(1, 9<<20), tag: "v1"}
		s.meddle = func(w http.ResponseWriter, r *http.Request) bool {
			if s.requests.Load() > 1 {
				panic(http.ErrAbortHandler)
			}
			s.serve(&cutting{w, 5 << 20}, r)
			return true
		}
		return mustServe(tb, s)
	},
	"web page": func(tb testing.TB) string { return mustServe(tb, status(200, "Content-Type", "text/html")) },
	"redirect loop with what it was told": func(tb testing.TB) string {
		return mustServe(tb, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/"+url.PathEscape(fmt.Sprint(r.Header))+"?"+r.URL.RawQuery, http.StatusFound)
		}))
	},
	"redirect to nowhere with what it was told": func(tb testing.TB) string {
		return mustServe(tb, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://%zz/"+fmt.Sprint(r.Header)+r.URL.RawQuery)
			w.WriteHeader(http.StatusFound)
		}))
	},
	"an unknown certificate": func(tb testing.TB) string {
		return sourcetest.MustServeTLS(tb, sourcetest.MustCertificate(tb, time.Now().Add(time.Hour)), tls.NoClientCert, http.NotFoundHandler()).URL + "/image"
	},
	"an echo instead of an answer": func(tb testing.TB) string { return mustEcho(tb, "") },
	"an echo in the status":        func(tb testing.TB) string { return mustEcho(tb, "HTTP/1.1 999 ") },
	"an echo in the headers":       func(tb testing.TB) string { return mustEcho(tb, "HTTP/1.1 200 OK\r\n") },
	"an echo in the length":        func(tb testing.TB) string { return mustEcho(tb, "HTTP/1.1 200 OK\r\nContent-Length: ") },
	"an echo in the coding":        func(tb testing.TB) string { return mustEcho(tb, "HTTP/1.1 200 OK\r\nTransfer-Encoding: ") },
	"an echo as a chunk": func(tb testing.TB) string {
		return mustEcho(tb, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
	},
	"nobody": func(tb testing.TB) string {
		l := httptest.NewServer(nil)
		l.Close()
		return l.URL + "/image"
	},
}

// mustEcho answers each connection with a beginning and then what it was sent.
func mustEcho(tb testing.TB, beginning string) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				request := make([]byte, 4<<10)
				n, _ := c.Read(request)
				_, lines, _ := strings.Cut(string(request[:n]), "\r\n") // the headers, credentials first
				io.WriteString(c, beginning+strings.ReplaceAll(strings.ReplaceAll(lines, ": ", " "), "\r\n", " ")+"\r\n\r\n")
			}()
		}
	}()
	return "http://" + l.Addr().String() + "/image"
}

// proofs are credentials of each kind, as keys of a secret.
func proofs(tb testing.TB) map[string]map[string]string {
	client := sourcetest.MustCertificate(tb, time.Now().Add(time.Hour))
	return map[string]map[string]string{
		"basic":       {"username": hidden + "-user", "password": hidden},
		"bearer":      {"token": hidden},
		"headers":     {"headers": "X-Key: " + hidden},
		"certificate": {"tls.crt": string(client.PEM), "tls.key": string(client.Key), "ca.crt": string(client.PEM)},
		"proxy":       {"proxy": "http://" + hidden + ":" + hidden + "@127.0.0.1:1"},
	}
}

// spelled are the forms in which what is secret could come out.
func spelled(keys map[string]string) []string {
	forms := []string{hidden, base64.StdEncoding.EncodeToString([]byte(hidden + "-user:" + hidden)), base64.StdEncoding.EncodeToString([]byte(hidden + ":" + hidden))}
	for _, line := range strings.Split(keys["tls.key"], "\n") {
		if len(line) > 40 {
			forms = append(forms, line)
		}
	}
	return forms
}

func TestSecretsAreNowhereAfterwards(t *testing.T) {
	for proof, keys := range proofs(t) {
		for fault, start := range failing {
			t.Run(proof+", "+fault, func(t *testing.T) {
				t.Parallel()
				dir := filepath.Join(t.TempDir(), "staging")
				said := fetchWith(t, keys, start(t)+"?token="+hidden+"&"+hidden, dir)
				for _, form := range spelled(keys) {
					if strings.Contains(said, form) {
						t.Errorf("%q is told in:\n%s", form, said)
					}
				}
			})
		}
	}
}

// fetchWith fetches with a credential, which is to fail, and returns all that is said and left behind.
func fetchWith(tb testing.TB, keys map[string]string, url, dir string) string {
	tb.Helper()
	data := map[string][]byte{}
	for key, value := range keys {
		data[key] = []byte(value)
	}
	c, err := credential.Parse("default/test", data)
	if err != nil {
		tb.Fatal(err)
	}
	o := source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Credential: c, StallTimeout: time.Second}
	s, err := source.NewHTTP(url, o)
	if err != nil {
		tb.Fatal(err)
	}
	var said strings.Builder
	logger := ktesting.NewLogger(tb, ktesting.NewConfig(ktesting.BufferLogs(true), ktesting.Verbosity(5)))
	j := fetch.Job{Dir: dir, Image: "fedora", ImageUID: "uid", Source: source.ParallelPieces(s, 2, 512<<10), Options: fetch.Options{Patience: 300 * time.Millisecond, CheckpointBytes: 1 << 20}}
	_, err = fetch.Run(klog.NewContext(context.Background(), logger), j, func(p fetch.Progress) { fmt.Fprintf(&said, "%+v\n", p) })
	if err == nil {
		tb.Error("the download succeeded")
	}
	fmt.Fprintf(&said, "%v\n%+v\n%#v\n%s\n%s\n%+v\n", err, err, err, j.Source, j.Source.Identity(), o)
	said.WriteString(logger.GetSink().(ktesting.Underlier).GetBuffer().String())
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			content, _ := os.ReadFile(path)
			said.Write(content)
		}
		return nil
	})
	return said.String()
}
