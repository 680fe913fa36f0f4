// Package openers has the sources of images, and the object stores of backups, that are large to link: a binary that needs none of
// them leaves them out.
package openers

import (
	"context"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/oci"
	"plinth.dev/plinth/backingimage/source/s3"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/backup/object"
	"plinth.dev/plinth/provisioner/backup/object/apart"
	backups3 "plinth.dev/plinth/provisioner/backup/object/s3"
)

// All are by the scheme of the URL, as node.Options takes them.
var All = map[string]node.Opener{source.SchemeS3: openS3, source.SchemeOCI: openOCI}

// bucketsBinary has the drivers of what only some speak to.
const bucketsBinary = "plinth-buckets"

// Backups are the stores of backups by the scheme of the URL.
var Backups = object.Openers{
	object.SchemeS3:    backups3.Open,
	object.SchemeGCS:   apart.Opener(findBuckets),
	object.SchemeAzure: apart.Opener(findBuckets),
}

func findBuckets() (string, error) { return program.FindBeside(bucketsBinary) }

func openS3(_ context.Context, parameters map[string]string, o source.Options) (source.Source, error) {
	return s3.New(parameters, o)
}

func openOCI(ctx context.Context, parameters map[string]string, o source.Options) (source.Source, error) {
	return oci.New(ctx, parameters[v1alpha1.ParameterURL], o)
}
