// Package apart opens buckets whose drivers are in a program of their own, because linking them would cost every process of Plinth
// 20 MB of binary and 14 MB of memory, used or not.
//
// The program (cmd/plinth-buckets) serves one bucket. It is started when there is something to ask, ends when nothing was asked for a
// while, is started again when it died, and dies with the process that started it. What it needs to know, credentials among it, comes on
// its standard input. Requests are HTTP over connected pairs of Unix sockets: the one end of each is handed down through a socket that
// the program inherits, so that there is no address at which anyone else could connect.
//
// Opener is the one side, an object.Opener as any other; Serve is the other, and serves what any object.Opener opens. Errors come
// across as a Kind and a text, as the bucket's own Classify gave them: it must tell what is not there as NotFound.
package apart

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"gocloud.dev/blob"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup/object"
)

// setup is what the program reads from its standard input.
type setup struct {
	Location     object.Location
	AllowCIDRs   []netip.Prefix
	StallTimeout time.Duration
	Proxy        bool // use the one that the environment names
	Secret       map[string][]byte
}

// Paths of requests. Both sides are of one build, or nearly so: the number changes with the protocol.
const (
	pathReady  = "/v1/ready"
	pathObject = "/v1/object"
	pathLook   = "/v1/look"
	pathList   = "/v1/list"
)

// Keys of a request's query.
const (
	queryName   = "name"
	queryBytes  = "bytes" // how many to read
	queryFresh  = "fresh" // the object must not be there
	queryPrefix = "prefix"
	queryToken  = "token"
	queryCount  = "count"
)

// Headers of answers.
const (
	headerKind     = "Plinth-Kind"  // of an error, whose text is the body
	headerBytes    = "Plinth-Bytes" // size of the object
	headerModified = "Plinth-Modified"
)

// timeFormat is that of headerModified.
const timeFormat = time.RFC3339Nano

// listed is an answer to a request for a list.
type listed struct {
	Objects []listedObject
	Next    []byte // token of the next page, nothing when there is none
}

type listedObject struct {
	Name     string
	Bytes    int64
	Modified time.Time
}

// Opener makes an object.Opener for buckets that a program serves. find finds it, or says what to do about its absence.
func Opener(find func() (string, error)) object.Opener {
	return func(ctx context.Context, l object.Location, o source.Options) (object.Bucket, error) {
		path, err := find()
		if err != nil {
			return object.Bucket{}, fmt.Errorf("keep backups in %s://: %w", l.Scheme, err)
		}
		told, err := json.Marshal(setup{l, o.AllowCIDRs, o.StallTimeout, o.Proxy != nil, o.Credential.Data()})
		if err != nil {
			return object.Bucket{}, fmt.Errorf("tell %s what to serve: %w", path, err)
		}
		b := newBucket(&child{path: path, setup: told})
		if err := b.ready(ctx); err != nil {
			b.Close()
			return object.Bucket{}, classify(ctx, err)
		}
		return object.Bucket{Bucket: blob.NewBucket(b), Classify: classify}, nil
	}
}

// classify gives an error of a bucket's a Kind: the one that the other side gave it, if it did.
func classify(ctx context.Context, err error) error {
	var told *refusal
	if errors.As(err, &told) {
		return backingimage.Errorf(told.kind, "%s", told.text)
	}
	var classified *backingimage.Error
	if errors.As(err, &classified) {
		return classified
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return backingimage.Errorf(backingimage.NotReady, "the program that speaks to the bucket ended while it was asked; it is started again")
}
