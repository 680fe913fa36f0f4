package source_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpproxy"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/sourcetest"
)

// environment is what an administrator's variables say.
func environment(proxy, no string) func(*url.URL) (*url.URL, error) {
	return (&httpproxy.Config{HTTPProxy: proxy, HTTPSProxy: proxy, NoProxy: no}).ProxyFunc()
}

// noAddress opens nothing: neither the proxy nor the server may be dialled unless the rules for proxies allow it.
var noAddress = []netip.Prefix{}

func TestTheAdministratorsProxyIsUsedWhereverItIs(t *testing.T) {
	certificate := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	give := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the server was told the proxy's login")
		}
		io.WriteString(w, text)
	})
	plain := httptest.NewServer(give)
	t.Cleanup(plain.Close)
	secure := sourcetest.MustServeTLS(t, certificate, tls.NoClientCert, give)
	dns := sourcetest.MustDNS(t, nil)
	for _, login := range []string{"", "user"} {
		p := sourcetest.MustProxy(t, login, "hunter2")
		p.Hosts["image.test"] = plain.Listener.Addr().String()
		o := source.Options{AllowCIDRs: noAddress, Proxy: environment(p.URL.String(), ""), Resolver: dns.Resolver()}
		if got, err := read("http://image.test/", o); err != nil || got != text {
			t.Errorf("http with login %q: %q, %v", login, got, err)
		}
		p.Hosts["192.0.2.1:443"] = secure.Listener.Addr().String()
		_, err := read("https://192.0.2.1/", o)
		if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "certificate is for another host name") {
			t.Errorf("https with login %q: %v", login, err)
		}
		if got := strings.Join(p.Asked(), " "); got != "image.test 192.0.2.1:443" {
			t.Errorf("the proxy was asked for %s", got)
		}
	}
}

func TestATunnelLeadsToTheServerItself(t *testing.T) {
	certificate := sourcetest.MustCertificate(t, time.Now().Add(time.Hour))
	server := sourcetest.MustServeTLS(t, certificate, tls.NoClientCert, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }))
	p := sourcetest.MustProxy(t, "user", "hunter2")
	c := mustCredential(t, map[string]string{"ca.crt": string(certificate.PEM), "proxy": p.URL.String()})
	if got, err := read(server.URL, source.Options{Credential: c}); err != nil || got != text || len(p.Asked()) != 1 {
		t.Errorf("got %q, %v; the proxy was asked for %v", got, err, p.Asked())
	}
}

func TestNoProxyIsObeyed(t *testing.T) {
	server := httptest.NewServer(serve(nil))
	t.Cleanup(server.Close)
	p := sourcetest.MustProxy(t, "", "")
	dns := sourcetest.MustDNS(t, map[string][]string{"image.test": {"127.0.0.1"}})
	at := strings.Replace(server.URL, "127.0.0.1", "image.test", 1)
	p.Hosts[strings.TrimPrefix(at, "http://")] = server.Listener.Addr().String()
	o := source.Options{Proxy: environment(p.URL.String(), ".test"), Resolver: dns.Resolver()}
	if got, err := read(at, o); err != nil || got != text || len(p.Asked()) != 0 {
		t.Errorf("got %q, %v; the proxy was asked for %v", got, err, p.Asked())
	}
	o.Credential = mustCredential(t, map[string]string{"proxy": p.URL.String()}) // an image's own proxy goes first
	if got, err := read(at, o); err != nil || got != text || len(p.Asked()) != 1 {
		t.Errorf("got %q, %v; the proxy was asked for %v", got, err, p.Asked())
	}
}

func TestNothingDeniedIsReachedThroughAProxy(t *testing.T) {
	target := httptest.NewServer(serve(nil))
	t.Cleanup(target.Close)
	_, port, _ := strings.Cut(target.Listener.Addr().String(), ":")
	dns := sourcetest.MustDNS(t, map[string][]string{"inside.test": {"127.0.0.1"}, "meta.test": {"169.254.169.254"}, "mapped.test": {"::ffff:127.0.0.1"}})
	for host, says := range map[string]string{
		"127.0.0.1":          "loopback",
		"[::ffff:127.0.0.1]": "loopback",
		"[64:ff9b::7f00:1]":  "loopback",
		"localhost":          "loopback",
		"x.localhost":        "loopback",
		"inside.test":        "loopback",
		"mapped.test":        "loopback",
		"meta.test":          "metadata",
		"0x7f.1":             "four decimal numbers",
	} {
		p := sourcetest.MustProxy(t, "", "")
		redirecting := httptest.NewServer(http.RedirectHandler("http://"+host+":"+port+"/", http.StatusFound))
		p.Hosts["first.test"] = redirecting.Listener.Addr().String()
		o := source.Options{AllowCIDRs: noAddress, Proxy: func(*url.URL) (*url.URL, error) { return p.URL, nil }, Resolver: dns.Resolver()}
		for _, at := range []string{"http://" + host + ":" + port + "/", "http://first.test/"} {
			_, err := read(at, o)
			if err == nil || !backingimage.Terminal(err) {
				t.Errorf("%s to %s: got %v", at, host, err)
			}
			if at != "http://first.test/" && !strings.Contains(err.Error(), says) {
				t.Errorf("%s: got %v, want %q", at, err, says)
			}
		}
		if got := strings.Join(p.Asked(), " "); got != "first.test" {
			t.Errorf("%s: the proxy was asked for %s", host, got)
		}
		redirecting.Close()
	}
}

func TestAnImagesProxyIsAnAddressLikeAnyOther(t *testing.T) {
	p := sourcetest.MustProxy(t, "user", "hunter2")
	c := mustCredential(t, map[string]string{"proxy": p.URL.String()})
	// Also when it is the administrator's, and when that one is named beside it.
	for _, o := range []source.Options{{Credential: c}, {Credential: c, Proxy: environment(p.URL.String(), "")}} {
		o.AllowCIDRs = noAddress
		_, err := read("http://192.0.2.1/", o)
		if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "loopback") || len(p.Asked()) != 0 {
			t.Errorf("got %v; it was asked for %v", err, p.Asked())
		}
	}
}

func TestTheAdministratorsProxyIsNoWayIn(t *testing.T) {
	p := sourcetest.MustProxy(t, "", "")
	proxy := func(u *url.URL) (*url.URL, error) {
		if u.Hostname() == "127.0.0.1" {
			return nil, nil // as NO_PROXY would have it
		}
		return p.URL, nil
	}
	redirecting := httptest.NewServer(http.RedirectHandler(p.URL.String(), http.StatusFound))
	t.Cleanup(redirecting.Close)
	p.Hosts["first.test"] = redirecting.Listener.Addr().String()
	_, err := read("http://first.test/", source.Options{AllowCIDRs: noAddress, Proxy: proxy, Resolver: sourcetest.MustDNS(t, nil).Resolver()})
	if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsWrongWithAProxyIsSaid(t *testing.T) {
	p := sourcetest.MustProxy(t, "user", "hunter2")
	wrong := *p.URL
	wrong.User = url.UserPassword("user", "hunter3")
	for name, c := range map[string]struct {
		url, proxy string
		kind       backingimage.Kind
		says       string
	}{
		"wrong login":             {"http://192.0.2.1/", wrong.String(), backingimage.Precondition, "key proxy"},
		"wrong login to a tunnel": {"https://192.0.2.1/", wrong.String(), backingimage.Precondition, "key proxy"},
		"a tunnel to nowhere":     {"https://image.invalid/", p.URL.String(), backingimage.NotReady, "the proxy answered 502"},
		"no proxy at all":         {"https://192.0.2.1/", "http://user:hunter2@127.0.0.1:1", backingimage.NotReady, "refused"},
	} {
		_, err := read(c.url, source.Options{Credential: mustCredential(t, map[string]string{"proxy": c.proxy}), Resolver: sourcetest.MustDNS(t, nil).Resolver()})
		if !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: got %v error %v, want %q", name, backingimage.KindOf(err), err, c.says)
		}
	}
}
