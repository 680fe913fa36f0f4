// Package source is where an image's bytes come from.
//
// A Source is opened at an offset and gives bytes until they end or the connection breaks; it never retries and never
// seeks. Resuming is the caller's affair, and needs one thing from here: the validator, an opaque string which names
// the version of the file that the bytes belong to. Open with an offset and a validator either continues that very
// version or begins anew at offset zero and says so in Body.Offset; it never joins the tail of one file to the head of
// another. The rule holds against servers that ignore Range, answer another range than asked, or changed the file.
//
// HTTP is the source behind the source type download. What it may talk to is decided after name resolution, when the
// address to dial is known: loopback, link-local, multicast and the clouds' metadata addresses are refused, at every
// redirect too, unless an administrator opened them. Behind a proxy, which dials out of our sight, the host of every
// request is judged before it is sent; see route.
//
// A credential is shown to the image's own server alone: scheme, host and port of its URL. A redirect elsewhere, or to
// plain http, is followed without it.
//
// Parallel reads large files over several connections at once. It is a decorator over what can give pieces, a Ranger, and
// looks like any other Source: in order, resumable, never of two versions.
//
// Errors are classified once, here. A Kind for which backingimage.Terminal holds means that asking again cannot help;
// NotReady means that it can, and RetryAfter tells whether the server named a time. No error, and no description,
// holds a user name, a password, or the value of a query parameter, where presigned URLs carry their secret.
package source

import (
	"context"
	"io"
)

// Source is one file that can be read from any offset, as far as its server is able. It is safe for concurrent use.
type Source interface {
	// Open begins to read at offset, in bytes. With a validator that Body gave earlier, the bytes are of that version.
	// Without one nothing vouches that the file is still the same: give an offset then only if the whole is going
	// to be checked against a known checksum. Body.Offset is offset, or 0 when the source had to begin anew.
	// The context governs the Body as well.
	Open(ctx context.Context, offset int64, validator string) (*Body, error)

	// String describes the source to people, secrets left out.
	String() string

	// Identity is a digest of the source's full address, its query included: equal exactly when the address is. It does not
	// depend on the credential that the source is opened with.
	Identity() string
}

// Ranger is a Source that can give a piece of a known version, so that several pieces can be on their way at once.
type Ranger interface {
	Source
	// OpenRange begins to read bytes bytes at offset of the version that validator names, which is not empty. NotReady when
	// the connection fails; Precondition when the source cannot give that piece of that version (any more).
	OpenRange(ctx context.Context, offset, bytes int64, validator string) (io.ReadCloser, error)
}

// Resolver is a Source whose name may come to stand for something else.
type Resolver interface {
	// Resolved is the source with what its name stood for when it was opened, without secrets; "" before it was.
	Resolved() string
}

// Checksummed is a Source that was told what its bytes must be. Who reads them compares, since only that one has them all and
// in order, however many connections they came over.
type Checksummed interface {
	// Checksum of the whole; the zero Checksum when nobody told.
	Checksum() Checksum
}

// Archived is a Source whose bytes are a tar archive, perhaps compressed, with the image in it.
type Archived interface {
	// ArchiveFolder is the folder of the archive whose one file is the image; "" when the bytes are the image's file itself.
	ArchiveFolder() string
}

// Body is an open source. Read returns io.EOF only after the last byte, as far as the source can tell; a broken or
// stalled connection is NotReady. Close is always due.
type Body struct {
	io.ReadCloser
	Offset    int64  // of the first byte that Read returns
	Bytes     int64  // size of the whole file; -1 when the source does not tell
	Validator string // names this version of the file; empty when the source has nothing fit for that
	Ranges    bool   // the source says that it can give pieces of this version: see Ranger
}
