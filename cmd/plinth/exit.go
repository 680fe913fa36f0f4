package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

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

// exitMeanings is what `plinth help exit-codes` and docs/reference/exit-codes.md say.
var exitMeanings = []struct {
	code    int
	meaning string
}{
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

// exitCode is the one table from errors to exit codes.
func exitCode(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(context.Cause(ctx), errInterrupted) && isContextError(err):
		return exitInterrupted
	case isContextError(err):
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

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// errorText is err in a sentence, or the signal's name when a signal is all that happened.
func errorText(ctx context.Context, err error) string {
	cause := context.Cause(ctx)
	if errors.Is(cause, errInterrupted) && isContextError(err) {
		return cause.Error()
	}
	return err.Error()
}

func newExitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("Exit codes of every plinth command:\n\n")
	for _, e := range exitMeanings {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.meaning)
	}
	return &cobra.Command{Use: "exit-codes", Short: "Exit codes and what they mean", Long: strings.TrimRight(b.String(), "\n")}
}

// kindNamed is the Kind whose name a status reason carries; Internal when it carries none.
func kindNamed(reason string) backingimage.Kind {
	for k := backingimage.Internal; k <= backingimage.Corrupt; k++ {
		if k.String() == reason {
			return k
		}
	}
	return backingimage.Internal
}
