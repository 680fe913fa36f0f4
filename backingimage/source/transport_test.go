package source_test

import (
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/sourcetest"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// mustCredential reads a secret of these keys.
func mustCredential(tb testing.TB, keys map[string]string) credential.Credential {
	tb.Helper()
	data := map[string][]byte{}
	for key, value := range keys {
		data[key] = []byte(value)
	}
	c, err := credential.Parse("default/test", data)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// read opens a source and reads all of it.
func read(url string, o source.Options) (string, error) {
	if o.AllowCIDRs == nil {
		o.AllowCIDRs = loopback
	}
	s, err := source.NewHTTP(url, o)
	if err != nil {
		return "", err
	}
	body, err := s.Open(context.Background(), 0, "")
	if err != nil {
		return "", err
	}
	defer body.Close()
	p, err := io.ReadAll(body)
	return string(p), err
}

// seen is what a server is told by who asks.
type seen struct {
	mu       sync.Mutex
	requests []string // authorization, header and certificate of each, or "-"
}

func (s *seen) note(r *http.Request) {
	certificate := "-"
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		certificate = "certificate"
	}
	value := func(name string) string {
		if v := r.Header.Get(name); v != "" {
			return v
		}
		return "-"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, value("Authorization")+" "+value("X-Key")+" "+certificate)
}

func TestCredentialsReachTheImagesServer(t *testing.T) {
	own := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	client := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	for want, keys := range map[string]map[string]string{
		"Basic dTpw - -":  {"username": "u", "password": "p"},
		"Bearer t - -":    {"token": "t"},
		"- k -":           {"headers": "x-key: k\n"},
		"- - certificate": {"tls.crt": string(client.PEM), "tls.key": string(client.Key)},
		"Bearer t k -":    {"token": "t", "headers": "X-Key: k"},
	} {
		var told seen
		server := sourcetest.MustServeTLS(t, own, tls.RequestClientCert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			told.note(r)
			io.WriteString(w, text)
		}))
		keys["ca.crt"] = string(own.PEM)
		got, err := read(server.URL, source.Options{Credential: mustCredential(t, keys)})
		if err != nil || got != text || strings.Join(told.requests, ",") != want {
			t.Errorf("the server saw %q, want %q; it gave %q, %v", told.requests, want, got, err)
		}
	}
}

func TestCredentialsStayWithTheImagesServer(t *testing.T) {
	certificate := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	client := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	proof := mustCredential(t, map[string]string{
		"token": "t", "headers": "X-Key: k", "tls.crt": string(client.PEM), "tls.key": string(client.Key), "ca.crt": string(certificate.PEM),
	})
	var abroad seen
	give := func(w http.ResponseWriter, r *http.Request) {
		abroad.note(r)
		io.WriteString(w, text)
	}
	var home *httptest.Server
	other := sourcetest.MustServeTLS(t, certificate, tls.RequestClientCert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/back" {
			http.Redirect(w, r, home.URL+"/end", http.StatusFound)
			return
		}
		give(w, r)
	}))
	plain := httptest.NewServer(http.HandlerFunc(give))
	t.Cleanup(plain.Close)
	dns := sourcetest.MustDNS(t, map[string][]string{"sub.home.test": {"127.0.0.1"}})
	for name, c := range map[string]struct{ to, want string }{
		"the same server":         {"/end", "Bearer t k certificate"},
		"another port":            {other.URL, "- - -"},
		"plain http":              {plain.URL, "- - -"},
		"another name":            {strings.Replace(plain.URL, "127.0.0.1", "sub.home.test", 1), "- - -"},
		"another server and back": {other.URL + "/back", "- - -"},
	} {
		home = sourcetest.MustServeTLS(t, certificate, tls.RequestClientCert, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/end" {
				give(w, r)
				return
			}
			if r.Header.Get("Authorization") != "Bearer t" || len(r.TLS.PeerCertificates) != 1 {
				t.Errorf("%s: the image's server was not shown who asks", name)
			}
			http.Redirect(w, r, c.to, http.StatusFound)
		}))
		abroad.requests = nil
		got, err := read(home.URL, source.Options{Credential: proof, Resolver: dns.Resolver()})
		if err != nil || got != text || strings.Join(abroad.requests, ",") != c.want {
			t.Errorf("%s: it saw %q, want %q; it gave %q, %v", name, abroad.requests, c.want, got, err)
		}
	}
}

func TestWhatIsWrongWithTLSIsSaid(t *testing.T) {
	good := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	expired := sourcetest.MustCertificate(t, time.Now().Add(-time.Hour))
	dns := sourcetest.MustDNS(t, map[string][]string{"other.test": {"127.0.0.1"}})
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	for name, c := range map[string]struct {
		certificate sourcetest.Certificate
		clients     tls.ClientAuthType
		trust       bool
		host        string
		says        string
	}{
		"an unknown authority":   {good, tls.NoClientCert, false, "127.0.0.1", "ca.crt"},
		"expired":                {expired, tls.NoClientCert, true, "127.0.0.1", "expired"},
		"another name":           {good, tls.NoClientCert, true, "other.test", "another host name"},
		"wants to know who asks": {good, tls.RequireAnyClientCert, true, "127.0.0.1", "tls.crt and tls.key"},
	} {
		server := sourcetest.MustServeTLS(t, c.certificate, c.clients, http.NotFoundHandler())
		o := source.Options{Resolver: dns.Resolver()}
		if c.trust {
			o.Credential = mustCredential(t, map[string]string{"ca.crt": string(c.certificate.PEM)})
		}
		_, err := read(strings.Replace(server.URL, "127.0.0.1", c.host, 1), o)
		if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want %q", name, err, c.says)
		}
	}
	if _, err := read(strings.Replace(plain.URL, "http:", "https:", 1), source.Options{}); !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("no TLS: got %v", err)
	}
}
