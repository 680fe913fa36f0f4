package source

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"
)

// What the sources in packages of their own share with HTTP.

// ErrUnfit is an answer that does not fit the piece or the version that was asked for, while the whole perhaps can be had.
var ErrUnfit = errUnfit

// Checked returns the options with their defaults filled in. Invalid.
func (o Options) Checked() (Options, error) {
	err := o.validate()
	return o, err
}

// Watch runs open, and then reads what it opened, under a watchdog: when no byte comes for o.StallTimeout, the context that
// open was given ends, and Watch or Read fails with NotReady. open returns an error with a Kind that does not name the source
// yet, the transport's own, which is NotReady and loses the URL it holds, or ErrUnfit, which stays as it is. When parent ended, its
// error comes first.
func Watch(parent context.Context, o Options, shown string, open func(context.Context) (io.ReadCloser, error)) (io.ReadCloser, error) {
	ctx, dog := watch(parent, o.Clock, o.StallTimeout)
	body, err := open(ctx)
	if err != nil {
		if errors.Is(err, errUnfit) {
			dog.stop()
			return nil, ErrUnfit
		}
		err = (&HTTP{shown: shown, options: o}).failed(parent, ctx, err)
		dog.stop()
		return nil, err
	}
	dog.rest()
	return &watchedBody{ReadCloser: body, ctx: ctx, parent: parent, dog: dog, shown: shown}, nil
}

// StatusError is the error of an answer that holds no image, for a source to wrap in one that has a Kind and a remedy;
// RetryAfter finds in it what the server asked for.
func StatusError(resp *http.Response, now time.Time) error {
	return &statusError{status: resp.StatusCode, retryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), now)}
}

// ParseContentRange reads the header "bytes first-last/size". A size that is not told, "*", is not ok.
func ParseContentRange(value string) (first, last, size int64, ok bool) {
	return parseContentRange(value)
}

// Bound is a transport whose answers that are not content are cut after 4 MiB, since what reads error pages, lists and tokens
// reads all of them into memory.
func Bound(inner http.RoundTripper, isContent func(*http.Response) bool) http.RoundTripper {
	return bounded{inner, isContent}
}

const boundBytes = 4 << 20

type bounded struct {
	inner     http.RoundTripper
	isContent func(*http.Response) bool
}

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.inner.RoundTrip(r)
	if err == nil && !b.isContent(resp) {
		body := resp.Body
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(body, boundBytes), body}
	}
	return resp, err
}
