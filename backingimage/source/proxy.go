package source

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"plinth.dev/plinth/backingimage"
)

// route decides how a request travels, directly or through a proxy, and that it ends nowhere where it may not.
//
// A direct connection is judged when it is dialled. Behind a proxy the address that matters is dialled out of our sight, so
// that the host of each request is judged before it is sent: an address as it is, a name by what it resolves to here. A
// name that does not resolve here is left to the proxy, whose rules are its administrator's.
//
// The proxy that the machine's administrator names may be anywhere, on loopback too. One that comes with an image is a
// user's choice, and is judged like any server.
type route struct {
	options Options
	checked *net.Dialer // refuses denied addresses
	free    *net.Dialer // for the administrator's proxies
	own     *url.URL    // the image's proxy
	err     error       // why there is no own proxy although there should be one
	named   sync.Map    // addresses of the administrator's proxies that were used
	unknown sync.Map    // names that did not resolve here, and when that was
}

// lookupTimeout bounds finding out what a name behind a proxy stands for: without a way out but the proxy there is often
// no name server that knows it.
const lookupTimeout = 2 * time.Second

// unknownTime is for how long a name that did not resolve is not looked up again.
const unknownTime = time.Minute

func newRoute(o Options, timeout time.Duration) *route {
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	r := &route{
		options: o,
		checked: &net.Dialer{Control: dialControl(o.AllowCIDRs), Timeout: timeout, Resolver: o.Resolver},
		free:    &net.Dialer{Timeout: timeout, Resolver: o.Resolver},
	}
	if text := o.Credential.Proxy.Reveal(); text != "" {
		r.own, r.err = parseProxy(text)
	}
	return r
}

// parseProxy reads the URL of an image's proxy. Its errors do not tell the URL, which may hold a login.
func parseProxy(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || defaultPorts[u.Scheme] == "" || u.Hostname() == "" {
		return nil, backingimage.Errorf(backingimage.Invalid, "proxy: it is not the URL of a proxy; write http://host:port")
	}
	return u, nil
}

// proxy implements http.Transport.Proxy; it sees every request, also after redirects.
func (r *route) proxy(req *http.Request) (*url.URL, error) {
	via, err := r.choose(req.URL)
	if err != nil {
		return nil, err
	}
	if via == nil {
		if _, isProxy := r.named.Load(addressOf(req.URL)); !isProxy {
			return nil, nil // judged when it is dialled
		}
		return nil, r.check(req.Context(), req.URL.Hostname())
	}
	if via.Scheme == "https" && r.options.Credential.Certificate != nil {
		return nil, backingimage.Errorf(backingimage.Precondition, "the proxy is spoken to over TLS and might be shown the client certificate, which is not meant for it; use a proxy with an http:// URL")
	}
	return via, r.check(req.Context(), req.URL.Hostname())
}

// choose returns the proxy on the way to a URL, nil for none.
func (r *route) choose(u *url.URL) (*url.URL, error) {
	if r.own != nil || r.err != nil {
		return r.own, r.err
	}
	if r.options.Proxy == nil {
		return nil, nil
	}
	via, err := r.options.Proxy(u)
	if err != nil { // it may quote the login
		return nil, backingimage.Errorf(backingimage.Precondition, "the environment names a proxy that cannot be used; correct HTTP_PROXY or HTTPS_PROXY where plinth runs")
	}
	if via != nil {
		r.named.Store(addressOf(via), true)
	}
	return via, nil
}

// dial implements http.Transport.DialContext.
func (r *route) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, named := r.named.Load(strings.ToLower(address)); named {
		return r.free.DialContext(ctx, network, address)
	}
	return r.checked.DialContext(ctx, network, address)
}

// check judges the host of a request that we do not dial ourselves.
func (r *route) check(ctx context.Context, host string) error {
	if isOddAddress(host) {
		return backingimage.Errorf(backingimage.Precondition, "%q is an address in a form that is read in several ways; write it as four decimal numbers", shortened(host))
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return deny(addr, r.options.AllowCIDRs)
	}
	for _, addr := range r.lookup(ctx, host) {
		if err := deny(addr, r.options.AllowCIDRs); err != nil {
			return err
		}
	}
	return nil
}

// lookup returns what a name stands for here, nothing when that cannot be found out. It does not try again for a while then:
// each piece of a download would wait for it.
func (r *route) lookup(ctx context.Context, host string) []netip.Addr {
	if isLocalName(host) {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	if since, unknown := r.unknown.Load(host); unknown && time.Since(since.(time.Time)) < unknownTime {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := r.options.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		r.unknown.Store(host, time.Now())
	}
	return addrs
}

// isLocalName reports whether a name is loopback wherever it is resolved (RFC 6761, 6.3).
func isLocalName(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// acceptTunnel judges a proxy's answer to CONNECT.
func acceptTunnel(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	cause := &statusError{status: resp.StatusCode, proxy: true}
	switch {
	case resp.StatusCode == http.StatusOK:
		return nil
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return backingimage.Errorf(backingimage.Precondition, "%w: %s", cause, proxyLogin)
	case resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return backingimage.Errorf(backingimage.NotReady, "%w: it will be tried again", cause)
	}
	return backingimage.Errorf(backingimage.Precondition, "%w: have the proxy's administrator allow that server, or use another proxy", cause)
}
