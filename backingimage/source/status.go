package source

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"plinth.dev/plinth/backingimage"
)

// statusError is an answer that holds no image. Its text is complete but for the URL.
type statusError struct {
	status     int
	proxy      bool // the answer is a proxy's
	retryAfter time.Duration
}

func (e *statusError) Error() string {
	if e.proxy {
		return fmt.Sprintf("the proxy answered %d %s", e.status, http.StatusText(e.status))
	}
	return fmt.Sprintf("the server answered %d %s", e.status, http.StatusText(e.status))
}

// RetryAfter returns how long the server asked to wait before the next try, 0 when it did not.
func RetryAfter(err error) time.Duration {
	var e *statusError
	if errors.As(err, &e) {
		return e.retryAfter
	}
	return 0
}

const proxyLogin = "the proxy wants a login; give it as http://user:password@host:port in the key proxy of the secret that the image (sourceParameters.secret) or the backup target (spec.secret) names"

// refusals say what an HTTP status that holds no image means and what to do about it. A status that is not named is
// NotReady from 500 on, and Precondition below.
var refusals = map[int]struct {
	kind   backingimage.Kind
	remedy string
}{
	http.StatusNotFound:           {backingimage.NotFound, "correct the URL; nothing is there"},
	http.StatusGone:               {backingimage.NotFound, "correct the URL; what was there is gone"},
	http.StatusUnauthorized:       {backingimage.Precondition, "it wants a login; name a secret that holds one in sourceParameters.secret (if there is one already, correct it), or use a presigned URL"},
	http.StatusForbidden:          {backingimage.Precondition, "access is refused; check the file's permissions, the secret that sourceParameters.secret names, or whether a presigned URL has expired"},
	http.StatusProxyAuthRequired:  {backingimage.Precondition, proxyLogin},
	http.StatusRequestTimeout:     {backingimage.NotReady, "it will be tried again"},
	http.StatusTooEarly:           {backingimage.NotReady, "it will be tried again"},
	http.StatusTooManyRequests:    {backingimage.NotReady, "it will be tried again"},
	http.StatusMisdirectedRequest: {backingimage.NotReady, "it will be tried again"},
}

// refusal turns an answer that is neither 200 nor 206 into an error. shown is the URL without its secrets.
func refusal(resp *http.Response, shown string, now time.Time) error {
	cause := &statusError{status: resp.StatusCode}
	known, ok := refusals[resp.StatusCode]
	switch {
	case ok:
	case resp.StatusCode >= 500:
		known.kind, known.remedy = backingimage.NotReady, "it will be tried again"
	default:
		known.kind, known.remedy = backingimage.Precondition, "use a URL that serves the image's file itself"
	}
	if known.kind == backingimage.NotReady {
		cause.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), now)
	}
	return backingimage.Errorf(known.kind, "download %s: %w: %s", shown, cause, known.remedy)
}

// parseRetryAfter reads seconds or an HTTP date; what is neither, or is past, is 0. A day is the most.
func parseRetryAfter(value string, now time.Time) time.Duration {
	const most = 24 * time.Hour
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, most)
	}
	if date, err := http.ParseTime(value); err == nil {
		return min(max(date.Sub(now), 0), most)
	}
	return 0
}
