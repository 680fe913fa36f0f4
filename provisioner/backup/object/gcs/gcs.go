// Package gcs opens buckets of Google Cloud Storage, and of what speaks its JSON API, for backups. Linking it is dear: plinth-buckets
// does.
package gcs

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/storage"
	"gocloud.dev/blob/gcsblob"
	"gocloud.dev/gcp"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/provisioner/backup/object"
)

var _ object.Opener = Open

// emulatorVariable would have the libraries speak to another server, with another client.
const emulatorVariable = "STORAGE_EMULATOR_HOST"

// bucket is what is known of an open bucket.
type bucket struct {
	name   string
	client *storage.Client
	there  atomic.Bool // the bucket was seen to exist
}

// Open implements object.Opener.
func Open(ctx context.Context, l object.Location, o source.Options) (object.Bucket, error) {
	if err := source.ValidateEndpoint("secret: key "+credential.KeyGoogleServer, o.Credential.GoogleEndpoint); err != nil {
		return object.Bucket{}, err
	}
	if err := os.Unsetenv(emulatorVariable); err != nil {
		return object.Bucket{}, fmt.Errorf("clear %s: %w", emulatorVariable, err)
	}
	transport := source.NewTransport(o)
	authorized, err := authorize(ctx, o.Credential, source.Bound(transport, isContent))
	if err != nil {
		return object.Bucket{}, err
	}
	// The library authorizes nothing by itself, which would have it look for an identity of the machine's.
	options := []option.ClientOption{option.WithoutAuthentication(), storage.WithJSONReads()}
	if e := o.Credential.GoogleEndpoint; e != "" {
		options = append(options, option.WithEndpoint(strings.TrimRight(e, "/")+"/storage/v1/"))
	}
	client := &gcp.HTTPClient{Client: http.Client{Transport: authorized, CheckRedirect: noRedirect}}
	opened, err := gcsblob.OpenBucket(ctx, client, l.Bucket, &gcsblob.Options{ClientOptions: options})
	if err != nil {
		return object.Bucket{}, fmt.Errorf("open bucket %s: %w", l.Bucket, err)
	}
	b := &bucket{name: l.Bucket}
	if !opened.As(&b.client) {
		return object.Bucket{}, fmt.Errorf("open bucket %s: it has no client", l.Bucket)
	}
	b.client.SetRetry(storage.WithPolicy(storage.RetryNever))
	return object.Bucket{
		Bucket: opened, Classify: b.classify, Sending: sending,
		Close: func() error { transport.CloseIdleConnections(); return nil },
	}, nil
}

func isContent(r *http.Response) bool { return r.StatusCode < 300 }

// noRedirect keeps tokens at the server that they are for.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// authorize makes a transport that proves who asks, when the credential says who that is.
func authorize(ctx context.Context, c credential.Credential, base http.RoundTripper) (http.RoundTripper, error) {
	const scope = storage.ScopeReadWrite
	var tokens oauth2.TokenSource
	switch c.GoogleCredentials.Reveal() {
	case "":
		return base, nil
	case credential.Ambient:
		found, err := google.FindDefaultCredentials(context.WithoutCancel(ctx), scope)
		if err != nil { // it may quote a file
			return nil, backingimage.Errorf(backingimage.Precondition, "this machine, or pod, has no identity of Google's; give it one (workload identity), or the key of a service account in %s", credential.KeyGoogle)
		}
		tokens = found.TokenSource
	default:
		signed, err := google.JWTAccessTokenSourceWithScope([]byte(c.GoogleCredentials.Reveal()), scope)
		if err != nil { // it may quote the key
			return nil, backingimage.Errorf(backingimage.Invalid, "secret: key %q has a private key that cannot be read; give the content of the service account's key file as it was made", credential.KeyGoogle)
		}
		tokens = signed
	}
	return &oauth2.Transport{Source: tokens, Base: base}, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sending has the server compare what it gets.
func sending(data []byte, as func(any) bool) {
	var w *storage.Writer
	if as(&w) {
		w.CRC32C, w.SendCRC32C = crc32.Checksum(data, castagnoli), true
	}
}

// meaning of an answer that holds no object, and what to do about it.
type meaning struct {
	kind   backingimage.Kind
	remedy string
}

const (
	keyRemedy = "put the key of a service account that has the role Storage Object Admin for the bucket into a secret, as " + credential.KeyGoogle + ", and name that secret"
	laterOn   = "it will be tried again"
)

var byStatus = map[int]meaning{
	http.StatusUnauthorized:       {backingimage.Precondition, "the server does not accept who asks; " + keyRemedy},
	http.StatusForbidden:          {backingimage.Precondition, "access is refused; " + keyRemedy},
	http.StatusRequestTimeout:     {backingimage.NotReady, laterOn},
	http.StatusTooManyRequests:    {backingimage.NotReady, laterOn},
	http.StatusPreconditionFailed: {backingimage.Conflict, "there is another object, or another version of it"},
}

// classify implements object.Bucket.Classify.
func (b *bucket) classify(ctx context.Context, err error) error {
	var answer *googleapi.Error
	var refused *oauth2.RetrieveError
	switch {
	case errors.Is(err, storage.ErrBucketNotExist):
		return b.absent()
	case errors.Is(err, storage.ErrObjectNotExist):
		return b.missing(ctx)
	case errors.As(err, &refused) && refused.Response != nil && refused.Response.StatusCode < 500:
		return backingimage.Errorf(backingimage.Precondition, "the identity of this machine, or pod, gets no token for Cloud Storage: %w; %s", source.StatusError(refused.Response, time.Now()), keyRemedy)
	case errors.As(err, &answer) && answer.Code >= 300:
		return b.answered(answer)
	}
	return source.Unanswered(ctx, err)
}

// answered classifies an answer by its status.
func (b *bucket) answered(answer *googleapi.Error) error {
	if answer.Code == http.StatusNotFound {
		return b.absent()
	}
	m, known := byStatus[answer.Code]
	switch {
	case known:
	case answer.Code >= 500:
		m = meaning{backingimage.NotReady, laterOn}
	default:
		m = meaning{backingimage.Precondition, "correct the URL and the endpoint, so that they name a bucket on a server that speaks Cloud Storage's JSON API"}
	}
	said := source.StatusError(&http.Response{StatusCode: answer.Code, Header: answer.Header}, time.Now())
	return backingimage.Errorf(m.kind, "%w: %s", said, m.remedy)
}

func (b *bucket) absent() error {
	return backingimage.Errorf(backingimage.Precondition, "there is no bucket %s; correct the URL, or make it", b.name)
}

// missing is the error of an object that is not there, or whose bucket is not: the server tells them apart in a list only.
func (b *bucket) missing(ctx context.Context) error {
	if !b.there.Load() {
		_, err := b.client.Bucket(b.name).Objects(ctx, &storage.Query{}).Next()
		if err != nil && !errors.Is(err, iterator.Done) {
			return b.classify(ctx, err)
		}
		b.there.Store(true)
	}
	return backingimage.Errorf(backingimage.NotFound, "there is no such object")
}
