package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
)

// Options of HTTP sources.
type Options struct {
	// AllowCIDRs opens addresses that are denied otherwise, for instance 127.0.0.0/8.
	AllowCIDRs []netip.Prefix
	// StallTimeout is how long a connection may give nothing before it counts as broken; 30 s by default.
	StallTimeout time.Duration
	// Credential says who asks. Its Proxy, when set, is gone through instead of what Proxy names.
	Credential credential.Credential
	// Proxy names the proxy that the machine's administrator wants to be used on the way to a URL, nil for none, as
	// httpproxy.Config.ProxyFunc does. When it is nil itself there is none.
	Proxy func(*url.URL) (*url.URL, error)
	// Resolver of host names; the machine's by default.
	Resolver *net.Resolver
	// Connections that one large download uses at once: see Parallel, which is not applied here. 1 is one stream.
	Connections int
	// UserAgent that servers see; "plinth" by default.
	UserAgent string
	// Clock for the stall timeout; the real one by default.
	Clock clock.WithDelayedExecution
}

const defaultStallTimeout = 30 * time.Second

func (o *Options) validate() error {
	if o.StallTimeout == 0 {
		o.StallTimeout = defaultStallTimeout
	}
	if o.StallTimeout < 0 {
		return backingimage.Errorf(backingimage.Invalid, "stall timeout: %s is negative; give how long a connection may be silent", o.StallTimeout)
	}
	if o.UserAgent == "" {
		o.UserAgent = "plinth"
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return nil
}

// HTTP is a Source behind an http or https URL.
type HTTP struct {
	url     string
	shown   string
	client  *http.Client
	options Options
}

// NewHTTP makes the source of a URL that ValidateURL accepts; others are Invalid.
func NewHTTP(raw string, o Options) (*HTTP, error) {
	if err := ValidateURL(raw); err != nil {
		return nil, err
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	return &HTTP{url: raw, shown: RedactURL(raw), client: newClient(u, o), options: o}, nil
}

// String is the URL without its secrets.
func (h *HTTP) String() string { return h.shown }

// Identity is the SHA-256 of the URL. Credentials have no part in it: a download goes on with a new password.
func (h *HTTP) Identity() string {
	sum := sha256.Sum256([]byte(h.url))
	return hex.EncodeToString(sum[:])
}

// Open sends one GET, or two when the answer to the first does not fit what was asked.
func (h *HTTP) Open(ctx context.Context, offset int64, validator string) (*Body, error) {
	if offset > 0 {
		body, err := h.open(ctx, span{offset: offset, validator: validator})
		if !errors.Is(err, errUnfit) {
			return body, err
		}
	}
	return h.open(ctx, whole)
}

// OpenRange implements Ranger. The connection is kept for the next piece; see CloseIdleConnections.
func (h *HTTP) OpenRange(ctx context.Context, offset, bytes int64, validator string) (io.ReadCloser, error) {
	body, err := h.open(ctx, span{offset, bytes, validator})
	if errors.Is(err, errUnfit) {
		return nil, backingimage.Errorf(backingimage.Precondition,
			"download %s: the server does not give the %d bytes from byte %d of the file that the download began with; perhaps it changed", h.shown, bytes, offset)
	}
	return body, err
}

// CloseIdleConnections closes the connections that OpenRange left open.
func (h *HTTP) CloseIdleConnections() { h.client.CloseIdleConnections() }

// open sends a GET and judges the answer, which is errUnfit when it is not of the span.
func (h *HTTP) open(parent context.Context, asked span) (*Body, error) {
	ctx, dog := watch(parent, h.options.Clock, h.options.StallTimeout)
	resp, err := h.request(ctx, asked)
	if err != nil {
		err = h.failed(parent, ctx, err)
		dog.stop()
		return nil, err
	}
	dog.rest()
	body, err := h.accept(resp, asked)
	if err != nil {
		dog.stop()
		resp.Body.Close()
		return nil, err
	}
	body.ReadCloser = &watchedBody{ReadCloser: resp.Body, ctx: ctx, parent: parent, dog: dog, shown: h.shown}
	return body, nil
}

func (h *HTTP) request(ctx context.Context, asked span) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", h.options.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
	req.Close = asked.bytes == 0 // only pieces have a successor
	asked.ask(req.Header)
	return h.client.Do(req)
}

// accept judges an answer by its status and headers.
func (h *HTTP) accept(resp *http.Response, asked span) (*Body, error) {
	switch resp.StatusCode {
	case http.StatusOK:
		if asked.bytes > 0 {
			return nil, errUnfit
		}
		if err := h.acceptContent(resp.Header); err != nil {
			return nil, err
		}
		return &Body{Bytes: resp.ContentLength, Validator: validatorOf(resp.Header), Ranges: givesRanges(resp.Header)}, nil
	case http.StatusPartialContent:
		return acceptRange(resp, asked)
	case http.StatusRequestedRangeNotSatisfiable:
		if !asked.isWhole() {
			return nil, errUnfit
		}
	}
	return nil, refusal(resp, h.shown, h.options.Clock.Now())
}

// noImages are media types that no image has, and what they are.
var noImages = map[string]string{
	"text/html":                "a web page",
	"application/xhtml+xml":    "a web page",
	"application/json":         "a JSON document",
	"application/problem+json": "a JSON document",
}

// acceptContent refuses answers that say of themselves that they are no image.
func (h *HTTP) acceptContent(header http.Header) error {
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	if what := noImages[kind]; what != "" {
		return backingimage.Errorf(backingimage.Invalid,
			"download %s: the URL serves %s, not an image; use the link of the file itself", h.shown, what)
	}
	if coding := header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return backingimage.Errorf(backingimage.Unsupported,
			"download %s: the server sends the file with Content-Encoding %q although it was asked not to; use a server that sends it as it is", h.shown, shortened(coding))
	}
	return nil
}
