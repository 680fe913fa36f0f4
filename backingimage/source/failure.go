package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"plinth.dev/plinth/backingimage"
)

// failed classifies a request that brought no answer.
func (h *HTTP) failed(parent, ctx context.Context, err error) error {
	if cause := parent.Err(); cause != nil {
		return cause
	}
	err = Unanswered(ctx, err)
	return backingimage.Errorf(backingimage.KindOf(err), "download %s: %w", h.shown, err)
}

// Unanswered gives the transport's error of a request that brought no answer a Kind and takes out of it what may not be
// shown. It names neither the server nor what was asked for.
func Unanswered(ctx context.Context, err error) error {
	var classified *backingimage.Error
	if errors.As(err, &classified) {
		return classified
	}
	if cause := context.Cause(ctx); cause != nil {
		if err = cause; errors.As(err, &classified) {
			return classified
		}
	}
	if what := distrust(err); what != "" {
		return backingimage.Errorf(backingimage.Precondition, "%s", what)
	}
	return backingimage.Errorf(backingimage.NotReady, "the server cannot be reached: %w", told(err))
}

// distrust says why a TLS connection cannot come about and what to do, "" when that is not what err is.
func distrust(err error) string {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		roots   x509.SystemRootsError
		record  tls.RecordHeaderError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &unknown), errors.As(err, &roots):
		return "the server's certificate is signed by an authority that is not trusted; put that authority's certificate into the key ca.crt of the secret that the image (sourceParameters.secret) or the backup target (spec.secret) names"
	case errors.As(err, &name):
		return "the server's certificate is for another host name; use a URL with a name that it is for, or have it issued anew"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired, or is not valid yet; have it renewed, or correct the clock of this machine"
	case errors.As(err, &invalid):
		return "the server's certificate is not valid for a server; have it issued anew"
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return "the server does not speak TLS at this port; use http, or another port"
	case errors.As(err, &op) && op.Op == "remote error" && refusesClient(op.Err.Error()):
		return "the server refuses the TLS connection (" + op.Err.Error() + "); if it wants a client certificate, put one into the keys tls.crt and tls.key of the secret that the image (sourceParameters.secret) or the backup target (spec.secret) names"
	}
	return ""
}

// refusesClient reports whether a TLS alert (RFC 8446, 6.2) is about who we are.
func refusesClient(alert string) bool {
	return strings.Contains(alert, "certificate") || strings.Contains(alert, "access denied") || strings.Contains(alert, "handshake failure")
}

// errUnspoken stands for what a server said that is no HTTP.
var errUnspoken = errors.New("the connection ended with something that is no proper HTTP")

// errHungUp stands for io.EOF, which to a reader means that all is well.
var errHungUp = errors.New("it closed the connection without an answer")

// told is as much of a transport's error as may be shown. net/http quotes URLs, which hold secrets, and what servers answer, which may
// hold what we sent them.
func told(err error) error {
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if errors.Is(err, io.EOF) {
		return errHungUp
	}
	for _, plain := range []error{io.ErrUnexpectedEOF, net.ErrClosed, context.DeadlineExceeded} {
		if errors.Is(err, plain) {
			return plain
		}
	}
	var (
		stall *stallError
		dns   *net.DNSError
		errno syscall.Errno
		op    *net.OpError
	)
	switch {
	case errors.As(err, &stall):
		return stall
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &errno) && errors.As(err, &op):
		return op
	case errors.As(err, &op) && (op.Timeout() || op.Op == "socks connect"):
		return op
	case strings.HasPrefix(err.Error(), "tls: ") || strings.HasPrefix(err.Error(), "remote error: tls: "):
		return err
	}
	return errUnspoken
}
