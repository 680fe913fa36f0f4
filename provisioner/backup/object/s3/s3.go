// Package s3 opens buckets of object stores that speak S3 for backups, with the client that images are downloaded with.
package s3

import (
	"context"

	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/s3"
	"plinth.dev/plinth/provisioner/backup/object"
)

var _ object.Opener = Open

// Open implements object.Opener.
func Open(_ context.Context, l object.Location, o source.Options) (object.Bucket, error) {
	b, err := s3.OpenBucket(l.Bucket, l.Region, o)
	if err != nil {
		return object.Bucket{}, err
	}
	return object.Bucket{Bucket: b.Bucket, Classify: b.Classify, Close: func() error { b.CloseIdle(); return nil }}, nil
}
