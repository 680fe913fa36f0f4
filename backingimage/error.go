package backingimage

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Kind says what went wrong in words that a caller can act on. The zero Kind is Internal: an error nobody classified.
type Kind int

const (
	Internal     Kind = iota // a fault of ours or of the machine
	Invalid                  // the request can never succeed as written
	OutOfRange               // a size or an offset that the thing cannot have
	NotFound                 // the named thing does not exist
	Conflict                 // a thing of that name exists and differs
	InUse                    // refused while something uses it
	Precondition             // the thing is in a state that does not allow it
	Full                     // no room
	Busy                     // the same thing is being worked on
	NotReady                 // will be possible later; nothing is wrong
	Unsupported              // this build or this machine cannot do it
	Corrupt                  // bytes are not what they must be
)

var kindNames = [...]string{"Internal", "Invalid", "OutOfRange", "NotFound", "Conflict", "InUse", "Precondition", "Full", "Busy", "NotReady", "Unsupported", "Corrupt"}

// String returns the Kind's name as it appears in status reasons.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kindNames[k]
}

// KindNamed is the Kind of a name, as status reasons and other processes give it; Internal when it is no Kind's.
func KindNamed(name string) Kind { return Kind(max(slices.Index(kindNames[:], name), 0)) }

// Error is an error with a Kind. Its message is complete: it says what failed, on what, and what to do.
type Error struct {
	Kind Kind
	err  error
}

// Errorf makes an Error; the format may wrap a cause with %w.
func Errorf(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// KindOf returns the Kind of the outermost Error in err's chain, Internal when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err has the Kind. A nil error has none.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// IgnoreNotFound is err, or nil when it is NotFound: what is gone needs nothing more.
func IgnoreNotFound(err error) error {
	if Is(err, NotFound) {
		return nil
	}
	return err
}

// Terminal reports whether trying again, with nothing changed, must end the same way.
func Terminal(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	switch KindOf(err) {
	case Invalid, OutOfRange, NotFound, Conflict, Precondition, Unsupported, Corrupt:
		return true
	}
	return false
}
