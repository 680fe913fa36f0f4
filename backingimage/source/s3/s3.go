// Package s3 is the source of images in object stores that speak S3: Amazon's, and those of others behind an endpoint.
//
// Objects are read through gocloud.dev/blob, over a client that is made here and knows only what it is told: the keys of the
// image's secret, or none, which asks anonymously. What the environment, the home directory or a cloud's metadata service
// hold is not looked at, so that an image cannot use rights that nobody gave it. The connections are made by
// source.NewTransport, whose deny list holds for endpoints and redirects too.
//
// An object's version is its ETag. Pieces are asked for with If-Match, and the answer is compared as well, because not
// every server that calls itself S3 looks at that header. The client tries nothing again: that is up to who reads.
//
// Errors are built from the server's status and error code alone. Its message and the client's may hold the access key,
// the signature and the text that was signed.
package s3

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/source"
)

// Source is an object in a bucket.
type Source struct {
	place
	bucket    *blob.Bucket
	transport *http.Transport
	options   source.Options
}

var _ source.Ranger = (*Source)(nil)

// place is where the object is.
type place struct {
	endpoint  string // URL of the server; "" for Amazon's
	region    string // that requests are signed for
	pathStyle bool   // the bucket is in the path, not in the host's name
	name, key string // of the bucket and in it
}

// New makes the source of source parameters that source.ValidateParameters accepts. What they say of the server wins over
// what the credential says. Nothing is asked yet. Invalid.
func New(parameters map[string]string, o source.Options) (*Source, error) {
	o, err := o.Checked()
	if err != nil {
		return nil, err
	}
	where, err := locate(parameters, o)
	if err != nil {
		return nil, err
	}
	transport := source.NewTransport(o)
	bucket, err := s3blob.OpenBucketV2(context.Background(), newClient(where, o, transport), where.name, nil)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", where.name, err)
	}
	return &Source{place: where, bucket: bucket, transport: transport, options: o}, nil
}

// locate reads the parameters. Without a region it is us-east-1, as Amazon's own tools have it; servers of others are asked
// in path style unless told otherwise, since few of them have a host's name for each bucket.
func locate(parameters map[string]string, o source.Options) (place, error) {
	if err := source.ValidateParameters(parameters); err != nil {
		return place{}, err
	}
	bucket, key, err := source.ParseS3(parameters[v1alpha1.ParameterURL])
	if err != nil {
		return place{}, err
	}
	if err := checkServer(o.Credential); err != nil {
		return place{}, err
	}
	p := place{
		endpoint: cmp.Or(parameters[v1alpha1.ParameterEndpoint], o.Credential.Endpoint),
		region:   cmp.Or(parameters[v1alpha1.ParameterRegion], o.Credential.Region, "us-east-1"),
		name:     bucket, key: key,
	}
	p.endpoint = strings.TrimRight(p.endpoint, "/")
	style := parameters[v1alpha1.ParameterPathStyle]
	p.pathStyle = style == "true" || style == "" && p.endpoint != ""
	return p, nil
}

// checkServer checks what a credential says of the server. Invalid.
func checkServer(c credential.Credential) error {
	if err := source.ValidateEndpoint("secret: key "+credential.KeyEndpoint, c.Endpoint); err != nil {
		return err
	}
	return source.ValidateRegion("secret: key "+credential.KeyRegion, c.Region)
}

// String is s3://bucket/key.
func (p place) String() string { return source.SchemeS3 + "://" + p.name + "/" + p.key }

// Identity is the SHA-256 of server, bucket and key.
func (p place) Identity() string {
	sum := sha256.Sum256([]byte(strings.Join([]string{p.endpoint, p.name, p.key}, "\n")))
	return hex.EncodeToString(sum[:])
}

// Open asks once, or twice when the object is no longer the version that was asked for.
func (s *Source) Open(ctx context.Context, offset int64, validator string) (*source.Body, error) {
	if offset > 0 {
		body, err := s.open(ctx, offset, -1, validator)
		if !errors.Is(err, source.ErrUnfit) {
			return body, err
		}
	}
	return s.open(ctx, 0, -1, "")
}

// OpenRange implements source.Ranger.
func (s *Source) OpenRange(ctx context.Context, offset, bytes int64, validator string) (io.ReadCloser, error) {
	body, err := s.open(ctx, offset, bytes, validator)
	if errors.Is(err, source.ErrUnfit) {
		return nil, backingimage.Errorf(backingimage.Precondition, "download %s: the object changed, or the server does not give the %d bytes from byte %d of it", s, bytes, offset)
	}
	if err != nil {
		return nil, err
	}
	return body.ReadCloser, nil
}

// CloseIdleConnections closes the connections that wait for a next request.
func (s *Source) CloseIdleConnections() { s.transport.CloseIdleConnections() }

// open asks for bytes bytes at offset, or for all from there when bytes is negative.
func (s *Source) open(ctx context.Context, offset, bytes int64, validator string) (*source.Body, error) {
	body := &source.Body{}
	pin := func(as func(any) bool) error {
		var in *s3.GetObjectInput
		if as(&in) {
			in.Key = aws.String(s.key) // the driver writes some keys otherwise
			if validator != "" {
				in.IfMatch = aws.String(validator)
			}
		}
		return nil
	}
	reader, err := source.Watch(ctx, s.options, s.String(), func(ctx context.Context) (io.ReadCloser, error) {
		r, err := s.bucket.NewRangeReader(ctx, s.key, offset, bytes, &blob.ReaderOptions{BeforeRead: pin})
		if err != nil {
			return nil, s.classify(err, s.options.Clock.Now())
		}
		if err := accept(r, body, offset, bytes, validator); err != nil {
			r.Close()
			return nil, err
		}
		return r, nil
	})
	if err != nil {
		return nil, err
	}
	body.ReadCloser = reader
	return body, nil
}

// accept judges an answer and describes it in body. It may begin at the object's beginning although another offset was asked
// for, unless a piece was.
func accept(r *blob.Reader, body *source.Body, offset, bytes int64, validator string) error {
	var out s3.GetObjectOutput
	r.As(&out)
	body.Bytes, body.Validator = -1, aws.ToString(out.ETag)
	body.Ranges = body.Validator != ""
	if validator != "" && body.Validator != validator {
		return source.ErrUnfit
	}
	length := int64(-1)
	if out.ContentLength != nil {
		length = *out.ContentLength
	}
	if out.ContentRange == nil {
		body.Bytes = length
		if bytes >= 0 && (offset > 0 || length != bytes) {
			return source.ErrUnfit
		}
		return nil
	}
	first, last, size, ok := source.ParseContentRange(*out.ContentRange)
	if !ok || first != offset || length >= 0 && length != last-first+1 || bytes >= 0 && bytes != last-first+1 {
		return source.ErrUnfit
	}
	body.Offset, body.Bytes = offset, size
	return nil
}
