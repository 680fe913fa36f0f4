package program

import (
	"context"
	"errors"

	"plinth.dev/plinth/backingimage"
)

// Exit codes that scripts can act on.
const (
	exitOK          = 0
	exitInternal    = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitConflict    = 4
	exitInUse       = 5
	exitNotReady    = 6
	exitFull        = 7
	exitCorrupt     = 8
	exitUnsupported = 9
	exitInterrupted = 130
)

// Meaning is what one exit code says.
type Meaning struct {
	Code int
	Text string
}

// Meanings is what `plinth help exit-codes` and docs/reference/exit-codes.md say.
var Meanings = []Meaning{
	{exitOK, "done"},
	{exitInternal, "a fault of Plinth or of the machine; the message has what is known"},
	{exitUsage, "the command line, a name, a size or a parameter can never work as written"},
	{exitNotFound, "the named thing does not exist, or the source has no such file"},
	{exitConflict, "a thing of that name exists and differs"},
	{exitInUse, "refused while something uses it, or in the state that it is in"},
	{exitNotReady, "not ready in time, or no server answers; trying again later can succeed"},
	{exitFull, "no room on any disk that may be used"},
	{exitCorrupt, "bytes are not what they must be, such as a wrong checksum"},
	{exitUnsupported, "this version, or this machine, cannot do it"},
	{exitInterrupted, "interrupted by a signal"},
}

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

// ExitCode is the one table from errors to exit codes.
func ExitCode(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(context.Cause(ctx), errInterrupted) && IsContextError(err):
		return exitInterrupted
	case IsContextError(err):
		return exitNotReady
	}
	switch backingimage.KindOf(err) {
	case backingimage.Invalid, backingimage.OutOfRange:
		return exitUsage
	case backingimage.NotFound:
		return exitNotFound
	case backingimage.Conflict:
		return exitConflict
	case backingimage.InUse, backingimage.Precondition:
		return exitInUse
	case backingimage.NotReady, backingimage.Busy:
		return exitNotReady
	case backingimage.Full:
		return exitFull
	case backingimage.Corrupt:
		return exitCorrupt
	case backingimage.Unsupported:
		return exitUnsupported
	default:
		return exitInternal
	}
}

func IsContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// ErrorText is err in a sentence, or the signal's name when a signal is all that happened.
func ErrorText(ctx context.Context, err error) string {
	cause := context.Cause(ctx)
	if errors.Is(cause, errInterrupted) && IsContextError(err) {
		return cause.Error()
	}
	return err.Error()
}
