package sourcetest

import (
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
)

// Proxy is an HTTP proxy that forwards http requests and tunnels others.
type Proxy struct {
	URL *url.URL // with the login
	// Hosts are names that the proxy knows, and the address, with its port, that it reaches for them.
	Hosts map[string]string

	login  string // value of Proxy-Authorization; "" when none is wanted
	server *httptest.Server
	mu     sync.Mutex
	asked  []string
}

// MustProxy starts a proxy until the test ends. It wants a login unless user is empty.
func MustProxy(tb testing.TB, user, password string) *Proxy {
	tb.Helper()
	p := &Proxy{Hosts: map[string]string{}}
	p.server = httptest.NewServer(p)
	tb.Cleanup(p.server.Close)
	tb.Cleanup(p.server.CloseClientConnections)
	var err error
	p.URL, err = url.Parse(p.server.URL)
	must(tb, err)
	if user != "" {
		p.URL.User = url.UserPassword(user, password)
		p.login = "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	return p
}

// Asked are the hosts, with their ports, of the requests so far.
func (p *Proxy) Asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asked...)
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.login != r.Header.Get("Proxy-Authorization") {
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, r.Host)
	p.mu.Unlock()
	if r.Method == http.MethodConnect {
		p.tunnel(w, r)
		return
	}
	p.forward(w, r)
}

func (p *Proxy) address(host string) string {
	if to, known := p.Hosts[host]; known {
		return to
	}
	return host
}

func (p *Proxy) forward(w http.ResponseWriter, r *http.Request) {
	out := r.Clone(r.Context())
	out.RequestURI, out.URL.Host = "", p.address(r.Host)
	out.Header.Del("Proxy-Authorization")
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for name, values := range resp.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // one side has gone
}

func (p *Proxy) tunnel(w http.ResponseWriter, r *http.Request) {
	to, err := net.Dial("tcp", p.address(r.Host))
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer to.Close()
	from, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer from.Close()
	if _, err := io.WriteString(from, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	go func() {
		_, _ = io.Copy(to, buffered) // one side has gone
		to.Close()
	}()
	_, _ = io.Copy(from, to)
}
