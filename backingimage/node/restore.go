package node

import (
	"cmp"
	"context"
	"fmt"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
)

// Restorer finds an image that is in a backup, of the parameters of source type restore. NotFound when there is no such backup; Invalid;
// Precondition when it cannot be had as the parameters say; NotReady.
type Restorer func(ctx context.Context, parameters map[string]string) (fetch.ImageBackup, error)

// restore is an attempt at making a copy of what a backup has of the image. Where that lacks something, the image is downloaded from where it
// once came from, if that is known and still gives the same content.
func (a *Agent) restore(c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (attempt, error) {
	if a.options.Restorer == nil {
		return nil, backingimage.Errorf(backingimage.Unsupported, "spec.sourceType: this agent cannot read backup targets")
	}
	if err := source.ValidateSource(image.Spec.SourceType, image.Spec.Parameters()); err != nil {
		return nil, err
	}
	return func(ctx context.Context, report func(fetch.Progress)) (result fetch.Result, err error) {
		from, err := a.options.Restorer(ctx, image.Spec.Parameters())
		if err != nil {
			return fetch.Result{}, err
		}
		job := a.nearJob(c, d, image, from.What, "")
		job.ContentDigest = cmp.Or(job.ContentDigest, from.ContentDigest)
		if !from.Instead(job.Dir, nil) {
			result, err = fetch.Restore(ctx, job, from, report)
		}
		if !from.Instead(job.Dir, err) {
			return result, err
		}
		result, derr := a.again(ctx, job, from, report)
		if derr != nil && err != nil {
			derr = backingimage.Errorf(backingimage.KindOf(derr), "%w; and from where it came first: %w", err, derr)
		}
		return result, derr
	}, nil
}

// again downloads an image from where it came before it was in a backup.
func (a *Agent) again(ctx context.Context, job fetch.NearJob, from fetch.ImageBackup, report func(fetch.Progress)) (fetch.Result, error) {
	klog.FromContext(ctx).Info("Downloading an image again that is in a backup", "backup", from.What, "url", source.RedactURL(from.Download[v1alpha1.ParameterURL]))
	s, err := a.download(ctx, from.Download)
	if err != nil {
		return fetch.Result{}, fmt.Errorf("fetch image %s: %w", job.Image, err)
	}
	return a.run(ctx, fetch.Job{Dir: job.Dir, Image: job.Image, ImageUID: job.ImageUID, Checksum: from.Checksum, ContentDigest: job.ContentDigest}, s, report)
}
