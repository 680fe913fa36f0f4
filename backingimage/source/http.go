package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
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
	// Credential says who asks. Its Proxy, when set, is gone through instead of what the environment names.
	Credential credential.Credential
	// UserAgent that servers see; "plinth" by default.
	UserAgent string
	// Clock for the stall timeout; the real one by default.
	Clock clock.WithDelayedExecution
}

func (o *Options) validate() error {
	if o.StallTimeout == 0 {
		o.StallTimeout = 30 * time.Second
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

// maxRedirects that one request follows.
const maxRedirects = 10

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
	return &HTTP{url: raw, shown: RedactURL(raw), client: newClient(o), options: o}, nil
}

// newClient makes a client that dials only what is allowed. Compression in transit is off: offsets, sizes and
// checksums are of the file itself. Connections are not kept: a Source is opened once, or again after a break.
func newClient(o Options) *http.Client {
	return &http.Client{Transport: NewTransport(o), CheckRedirect: checkRedirect}
}

// NewTransport makes a transport that dials only what Options allow, trusts and shows the certificates of the credential,
// and goes through its proxy or the environment's. It adds no header: who proves itself with headers does so to the server
// that they are meant for.
func NewTransport(o Options) *http.Transport {
	dialer := &net.Dialer{Control: dialControl(o.AllowCIDRs), Timeout: o.StallTimeout}
	return &http.Transport{
		Proxy:               nil, // see the package comment
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: o.StallTimeout,
		DisableCompression:  true,
		DisableKeepAlives:   true,
	}
}

func checkRedirect(next *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return backingimage.Errorf(backingimage.Precondition, "the server redirected more than %d times; use the URL of the file itself", maxRedirects)
	}
	if next.URL.Scheme != "http" && next.URL.Scheme != "https" {
		return backingimage.Errorf(backingimage.Precondition, "the server redirected to a %q address; images are downloaded over http or https", next.URL.Scheme)
	}
	next.Header.Del("Referer") // it would tell the next server the query of the last URL
	return nil
}

// String is the URL without its secrets.
func (h *HTTP) String() string { return h.shown }

// Identity is the SHA-256 of the URL.
func (h *HTTP) Identity() string {
	sum := sha256.Sum256([]byte(h.url))
	return hex.EncodeToString(sum[:])
}

// Open sends one GET, or two when the answer to the first does not fit what was asked.
func (h *HTTP) Open(ctx context.Context, offset int64, validator string) (*Body, error) {
	if offset > 0 {
		body, err := h.open(ctx, offset, validator)
		if !errors.Is(err, errUnfit) {
			return body, err
		}
	}
	return h.open(ctx, 0, "")
}

// errUnfit is an answer to a range request that cannot be used, while the whole file perhaps can be had.
var errUnfit = errors.New("the answer does not fit the range that was asked for")

func (h *HTTP) open(parent context.Context, offset int64, validator string) (*Body, error) {
	ctx, dog := watch(parent, h.options.Clock, h.options.StallTimeout)
	resp, err := h.request(ctx, offset, validator)
	if err != nil {
		err = h.failed(parent, ctx, err)
		dog.stop()
		return nil, err
	}
	dog.rest()
	body, err := h.accept(resp, offset, validator)
	if err != nil {
		dog.stop()
		resp.Body.Close()
		return nil, err
	}
	body.ReadCloser = &watchedBody{ReadCloser: resp.Body, ctx: ctx, parent: parent, dog: dog, shown: h.shown}
	return body, nil
}

func (h *HTTP) request(ctx context.Context, offset int64, validator string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", h.options.UserAgent)
	req.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		if validator != "" {
			req.Header.Set("If-Range", validator)
		}
	}
	return h.client.Do(req)
}

// failed classifies a request that brought no answer. net/http's own text is not used: it holds the URL.
func (h *HTTP) failed(parent, ctx context.Context, err error) error {
	if cause := parent.Err(); cause != nil {
		return cause
	}
	var classified *backingimage.Error
	if errors.As(err, &classified) {
		return backingimage.Errorf(classified.Kind, "download %s: %w", h.shown, classified)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	return backingimage.Errorf(backingimage.NotReady, "download %s: the server cannot be reached: %w", h.shown, err)
}

// accept judges an answer by its status and headers.
func (h *HTTP) accept(resp *http.Response, offset int64, validator string) (*Body, error) {
	switch resp.StatusCode {
	case http.StatusOK:
		if err := h.acceptContent(resp.Header); err != nil {
			return nil, err
		}
		return &Body{Bytes: resp.ContentLength, Validator: validatorOf(resp.Header)}, nil
	case http.StatusPartialContent:
		return acceptRange(resp, offset, validator)
	case http.StatusRequestedRangeNotSatisfiable:
		if offset > 0 {
			return nil, errUnfit
		}
	}
	return nil, refusal(resp, h.shown, h.options.Clock.Now())
}

// acceptContent refuses answers that say of themselves that they are no image.
func (h *HTTP) acceptContent(header http.Header) error {
	kind, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	if kind == "text/html" || kind == "application/xhtml+xml" {
		return backingimage.Errorf(backingimage.Invalid,
			"download %s: the URL serves a web page, not an image; use the link of the file itself", h.shown)
	}
	if coding := header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return backingimage.Errorf(backingimage.Unsupported,
			"download %s: the server sends the file with Content-Encoding %q although it was asked not to; use a server that sends it as it is", h.shown, coding)
	}
	return nil
}

// acceptRange trusts a 206 only if it begins where it was asked to, in the same version of the file, and tells the size
// of the whole. It may end earlier than the file.
func acceptRange(resp *http.Response, offset int64, validator string) (*Body, error) {
	first, last, size, ok := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case offset == 0, !ok, first != offset:
		return nil, errUnfit
	case resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
		return nil, errUnfit
	case validator != "" && changed(resp.Header, validator):
		return nil, errUnfit
	}
	return &Body{Offset: offset, Bytes: size, Validator: validator}, nil
}

// changed reports whether an answer names another version than the validator does. A 206 need not name any.
func changed(header http.Header, validator string) bool {
	if tag := header.Get("ETag"); tag != "" && strings.HasPrefix(validator, `"`) {
		return tag != validator
	}
	if date := header.Get("Last-Modified"); date != "" && !strings.HasPrefix(validator, `"`) {
		return date != validator
	}
	return false
}

// validatorOf is what may be sent as If-Range: a strong ETag, else a Last-Modified that is older than the answer by a
// second at least, so that the file cannot have changed again within its resolution (RFC 9110, 8.8.2.2).
func validatorOf(header http.Header) string {
	if tag := header.Get("ETag"); strings.HasPrefix(tag, `"`) {
		return tag
	}
	modified, err := http.ParseTime(header.Get("Last-Modified"))
	if err != nil {
		return ""
	}
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil || date.Sub(modified) < time.Second {
		return ""
	}
	return header.Get("Last-Modified")
}

// parseContentRange reads "bytes first-last/size". A size that is not told, "*", is not ok.
func parseContentRange(value string) (first, last, size int64, ok bool) {
	span, found := strings.CutPrefix(value, "bytes ")
	span, total, slash := strings.Cut(span, "/")
	from, to, dash := strings.Cut(span, "-")
	if !found || !slash || !dash {
		return 0, 0, 0, false
	}
	var numbers [3]int64
	for i, s := range []string{from, to, total} {
		n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
		if err != nil || n < 0 {
			return 0, 0, 0, false
		}
		numbers[i] = n
	}
	first, last, size = numbers[0], numbers[1], numbers[2]
	return first, last, size, first <= last && last < size
}
