package main

import (
	"context"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/oci"
	"plinth.dev/plinth/backingimage/source/s3"
)

// openers of the sources that would add more than half to the size of a binary that fetches nothing.
var openers = map[string]node.Opener{source.SchemeS3: openS3, source.SchemeOCI: openOCI}

func openS3(_ context.Context, parameters map[string]string, o source.Options) (source.Source, error) {
	return s3.New(parameters, o)
}

func openOCI(ctx context.Context, parameters map[string]string, o source.Options) (source.Source, error) {
	return oci.New(ctx, parameters[v1alpha1.ParameterURL], o)
}
