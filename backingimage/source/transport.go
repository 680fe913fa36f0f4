package source

import (
	"cmp"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

const (
	// maxRedirects that one request follows.
	maxRedirects = 10
	// maxHeaderBytes of an answer.
	maxHeaderBytes = 256 << 10
	// maxIdle connections of one server wait for the next piece.
	maxIdle = 32
	// idleTimeout is how long a connection may wait for the next piece, should nobody close it.
	idleTimeout = 10 * time.Second
)

// newClient makes the client of one image: it dials only what is allowed, and proves who asks to the image's own server
// alone. Compression in transit is off: offsets, sizes and checksums are of the file itself.
func newClient(image *url.URL, o Options) *http.Client {
	g := &guarded{origin: originOf(image), credential: o.Credential, home: NewTransport(o)}
	g.abroad = g.home
	if o.Credential.Certificate != nil {
		o.Credential.Certificate = nil
		g.abroad = NewTransport(o)
	}
	return &http.Client{Transport: g, CheckRedirect: checkRedirect}
}

// NewTransport makes a transport that dials only what Options allow, trusts and shows the certificates of the credential,
// and goes through its proxy or the administrator's. It adds no header: who proves itself with headers does so to the server
// that they are meant for. The certificate is shown to every server that asks for one: a transport that follows redirects
// elsewhere is made of Options without it.
func NewTransport(o Options) *http.Transport {
	timeout := cmp.Or(o.StallTimeout, defaultStallTimeout)
	r := newRoute(o, timeout)
	return &http.Transport{
		Proxy:                  r.proxy,
		OnProxyConnectResponse: acceptTunnel,
		DialContext:            r.dial,
		TLSClientConfig:        tlsConfig(o.Credential),
		TLSHandshakeTimeout:    timeout,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTimeout,
	}
}

func tlsConfig(c credential.Credential) *tls.Config {
	config := &tls.Config{RootCAs: c.Authorities}
	if c.Certificate != nil {
		config.Certificates = []tls.Certificate{*c.Certificate}
	}
	return config
}

// guarded proves who asks to one server, the origin. Once a redirect has left it, nothing that another server says brings the
// proof out again.
type guarded struct {
	origin     string
	credential credential.Credential
	home       *http.Transport // shows the client certificate
	abroad     *http.Transport // does not
}

// RoundTrip implements http.RoundTripper.
func (g *guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	if !g.atHome(r) {
		return g.abroad.RoundTrip(r)
	}
	r = r.Clone(r.Context()) // so that the next request does not inherit the headers
	g.credential.Apply(r.Header)
	return g.home.RoundTrip(r)
}

// atHome reports whether a request, and every one that was redirected to it, is to the origin.
func (g *guarded) atHome(r *http.Request) bool {
	for originOf(r.URL) == g.origin {
		if r.Response == nil {
			return true
		}
		r = r.Response.Request
	}
	return false
}

// CloseIdleConnections closes the connections that wait for a next request.
func (g *guarded) CloseIdleConnections() {
	g.home.CloseIdleConnections()
	g.abroad.CloseIdleConnections()
}

// originOf is scheme, host and port of a URL, in one spelling.
func originOf(u *url.URL) string {
	return u.Scheme + "://" + addressOf(u)
}

// defaultPorts of the schemes that a server or a proxy is spoken to with.
var defaultPorts = map[string]string{"http": "80", "https": "443", "socks5": "1080"}

// addressOf is the host and the port that a URL is dialled at.
func addressOf(u *url.URL) string {
	return net.JoinHostPort(strings.ToLower(u.Hostname()), cmp.Or(u.Port(), defaultPorts[u.Scheme]))
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return backingimage.Errorf(backingimage.Precondition, "the server redirected more than %d times; use the URL of the file itself", maxRedirects)
	case next.URL.Scheme != "http" && next.URL.Scheme != "https":
		return backingimage.Errorf(backingimage.Precondition, "the server redirected to a %q address; images are downloaded over http or https", shortened(next.URL.Scheme))
	case isOddAddress(next.URL.Hostname()):
		return backingimage.Errorf(backingimage.Precondition, "the server redirected to %q, which is an address in a form that is read in several ways; use the URL of the file itself", shortened(next.URL.Hostname()))
	}
	next.Header.Del("Referer") // it would tell the next server the query of the last URL
	return nil
}
