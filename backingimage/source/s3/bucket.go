package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// Bucket is a bucket for who keeps things in it, over the same client as a Source. It tries nothing again.
type Bucket struct {
	*blob.Bucket
	place
	transport *http.Transport
	options   source.Options
}

// OpenBucket opens a bucket with what the credential says of the server and of who asks. Nothing is asked yet. Invalid.
func OpenBucket(name, region string, o source.Options) (*Bucket, error) {
	o, err := o.Checked()
	if err != nil {
		return nil, err
	}
	if err := source.ValidateBucket(name); err != nil {
		return nil, err
	}
	if err := checkServer(o.Credential); err != nil {
		return nil, err
	}
	if err := source.ValidateRegion("region", region); err != nil {
		return nil, err
	}
	where := place{endpoint: strings.TrimRight(o.Credential.Endpoint, "/"), region: cmp.Or(region, o.Credential.Region, "us-east-1"), name: name}
	where.pathStyle = where.endpoint != ""
	transport := source.NewTransport(o)
	bucket, err := s3blob.OpenBucketV2(context.Background(), newClient(where, o, transport), name, nil)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return &Bucket{Bucket: bucket, place: where, transport: transport, options: o}, nil
}

// Classify gives an error of the bucket's a Kind, a remedy, and no text of the server's. It names neither the bucket nor the key.
// That there is no such bucket is a Precondition. ctx is that of the call.
func (b *Bucket) Classify(ctx context.Context, err error) error {
	if codeOf(err) == "NoSuchBucket" {
		return backingimage.Errorf(backingimage.Precondition, "there is no bucket %s; correct the URL, or make it", b.name)
	}
	classified := b.classify(err, b.options.Clock.Now())
	if errors.Is(classified, source.ErrUnfit) {
		return backingimage.Errorf(backingimage.Conflict, "the server has another version of the object, or less of it, than was asked for")
	}
	if classified != err {
		return classified
	}
	return source.Unanswered(ctx, err)
}

// CloseIdle closes the connections that wait for a next request.
func (b *Bucket) CloseIdle() { b.transport.CloseIdleConnections() }
