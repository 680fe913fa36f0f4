package transfer

import (
	"net/http"

	"plinth.dev/plinth/backingimage"
)

// statuses is the table between Kinds and status codes. Who reads a status that two Kinds have takes the first.
var statuses = []struct {
	kind   backingimage.Kind
	status int
}{
	{backingimage.Invalid, http.StatusBadRequest},
	{backingimage.OutOfRange, http.StatusRequestEntityTooLarge},
	{backingimage.NotFound, http.StatusNotFound},
	{backingimage.Conflict, http.StatusConflict},
	{backingimage.InUse, http.StatusConflict},
	{backingimage.Precondition, http.StatusGone},
	{backingimage.Full, http.StatusInsufficientStorage},
	{backingimage.Busy, http.StatusLocked},
	{backingimage.NotReady, http.StatusServiceUnavailable},
}

// httpStatus is how a server answers with an error.
func httpStatus(err error) int {
	kind := backingimage.KindOf(err)
	for _, s := range statuses {
		if s.kind == kind {
			return s.status
		}
	}
	return http.StatusInternalServerError
}

// kindOfStatus is how a client takes an answer, which may be of something in between.
func kindOfStatus(status int) backingimage.Kind {
	for _, s := range statuses {
		if s.status == status {
			return s.kind
		}
	}
	switch {
	case status == http.StatusUnauthorized:
		return backingimage.Precondition
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return backingimage.NotReady
	}
	return backingimage.Internal
}
