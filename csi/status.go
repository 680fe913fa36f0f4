package csi

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"plinth.dev/plinth/backingimage"
)

// codeOf is the table of errors. What the specification says of a single RPC outranks it, in that RPC.
var codeOf = map[backingimage.Kind]codes.Code{
	backingimage.Invalid:      codes.InvalidArgument,
	backingimage.OutOfRange:   codes.OutOfRange,
	backingimage.NotFound:     codes.NotFound,
	backingimage.Conflict:     codes.AlreadyExists,
	backingimage.InUse:        codes.FailedPrecondition,
	backingimage.Precondition: codes.FailedPrecondition,
	backingimage.Full:         codes.ResourceExhausted,
	backingimage.Busy:         codes.Aborted,
	backingimage.NotReady:     codes.Unavailable,
	backingimage.Unsupported:  codes.Unimplemented,
	backingimage.Corrupt:      codes.DataLoss,
	backingimage.Internal:     codes.Internal,
}

// statusOf makes any error one with a gRPC status; nil stays nil. A Kind outranks the end of a context, because
// whoever chose it knew of both; a status that an RPC chose itself stays as it is.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	var chosen interface{ GRPCStatus() *status.Status }
	if errors.As(err, &chosen) {
		return chosen.GRPCStatus().Err()
	}
	return status.Error(codeFor(err), err.Error())
}

func codeFor(err error) codes.Code {
	kind := backingimage.KindOf(err)
	switch {
	case kind != backingimage.Internal:
		return codeOf[kind]
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return codes.Internal
}
