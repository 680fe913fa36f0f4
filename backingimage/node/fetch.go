package node

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/parallel"
	"plinth.dev/plinth/backingimage/source"
)

// attempt is one try at making a copy in the staging directory.
type attempt func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error)

// plan says how a copy is to be made: from a ready copy on another disk of this node, from other nodes that have one, or,
// when it is the origin, from the image's source; waits tells what it has to wait for instead. The source is found when the attempt begins, since that
// may take asking a server, for which no other copy should wait.
func (a *Agent) plan(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (run attempt, kind fetchKind, waits string, err error) {
	if near, on := a.readyHere(ctx, c, d); near != nil {
		return a.copyOf(near, on, d.Layout().StagedImage(c.Spec.ImageUID)), kind, "", nil
	}
	if run, is, err := a.fromPeers(ctx, c, d, image); is {
		return run, fetchKind{fromPeers: true}, "", err
	}
	if !c.Spec.Origin {
		return nil, kind, "waits for the image's first copy, which another disk is making", nil
	}
	run, waits, err = a.planSource(ctx, c, d, image)
	return a.asOrigin(c, d, run), fetchKind{waits: waitsForPeople(c, image), fromSource: true}, waits, err
}

// readyHere finds a ready copy of the same image on another disk of this node. That one is not ready yet is asked of the API server: the
// end of a fetch, which brings us here, is known to the cache later.
func (a *Agent) readyHere(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk) (*v1alpha1.BackingImageCopy, *disk.Disk) {
	for _, other := range a.disks.List() {
		name := v1alpha1.CopyName(c.Spec.ImageUID, other.UUID())
		near, ok := a.store.Copies.Get(name)
		if !ok || other == d {
			continue
		}
		if near.Status.State != v1alpha1.CopyReady && !a.fetches.running(name) {
			if live, err := a.store.Copies.Live(ctx, name); err == nil {
				near = live
			}
		}
		if near.Status.State == v1alpha1.CopyReady {
			return near, other
		}
	}
	return nil, nil
}

// copyOf is an attempt at making a copy of a ready one on another disk. Damage that it finds there is marked.
func (a *Agent) copyOf(from *v1alpha1.BackingImageCopy, on *disk.Disk, staged string) attempt {
	dir := on.Layout().Image(from.Spec.ImageUID)
	return func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error) {
		result, err := fetch.CopyLocal(ctx, dir, staged, report)
		return result, a.suspected(ctx, from.Name, dir, err)
	}
}

// planSource says how a copy is made of what the image itself is made of.
func (a *Agent) planSource(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (run attempt, waits string, err error) {
	if run, waits, is, err := a.near(ctx, c, d, image); is {
		return run, waits, err
	}
	if image.Spec.SourceType == v1alpha1.SourceUpload {
		run, err := a.receive(c, d, image)
		return run, "", err
	}
	if image.Spec.SourceType == v1alpha1.SourceRestore {
		run, err := a.restore(c, d, image)
		return run, "", err
	}
	if waits := a.waitsForSecret(ctx, image); waits != "" {
		return nil, waits, nil
	}
	return a.fetchFrom(c, d, image, func(ctx context.Context) (source.Source, error) { return a.source(ctx, image) }), "", nil
}

// fetchFrom is an attempt at making a copy of the bytes that a source gives.
func (a *Agent) fetchFrom(c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage, open func(context.Context) (source.Source, error)) attempt {
	job := fetch.Job{
		Dir: d.Layout().StagedImage(c.Spec.ImageUID), Image: image.Name, ImageUID: c.Spec.ImageUID, Checksum: image.Spec.Checksum,
		Unpublished: image.Spec.SourceType == v1alpha1.SourceUpload, ContentDigest: image.Status.ContentDigest,
	}
	return func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error) {
		from, err := open(ctx)
		if err != nil {
			return fetch.Result{}, err
		}
		return a.run(ctx, job, from, report)
	}
}

// run brings the bytes that a source gives.
func (a *Agent) run(ctx context.Context, job fetch.Job, from source.Source, report func(fetch.Progress)) (fetch.Result, error) {
	job.Source, job.ArchiveFolder, job.Limits, job.Clock = from, archiveFolder(from), a.options.Limits, a.options.Clock
	result, err := fetch.Run(ctx, job, report)
	if err == nil {
		a.options.Metrics.sourceBytes.Add(float64(result.SourceBytes))
	}
	return result, err
}

func archiveFolder(from source.Source) string {
	if archived, ok := from.(source.Archived); ok {
		return archived.ArchiveFolder()
	}
	return ""
}

// fetch makes a copy and publishes it, reporting on the way. It runs in a goroutine of its own; ctx ends when the copy
// is no longer wanted or the agent stops, and then nothing is reported.
func (a *Agent) fetch(ctx context.Context, name string, d *disk.Disk, run attempt) {
	defer a.wakeAll() // after finish: whoever waits for this fetch, or for its place, looks again
	defer a.fetches.finish(name)
	uid, _, _ := v1alpha1.ParseCopyName(name)
	if a.options.Shares != nil {
		defer a.options.Shares.Drop(uid) // what is published is given from where it is then
	}
	log := klog.FromContext(ctx)
	if err := a.report(ctx, name, func(s *v1alpha1.BackingImageCopyStatus) {
		s.State, s.Message, s.Reason, s.NextTryTime = v1alpha1.CopyStarting, "opening the source", "", nil
	}); err != nil && ctx.Err() == nil {
		log.Error(err, "Cannot report the fetch")
	}
	began := a.options.Clock.Now()
	meter := newMeter(a.options.Clock, a.options.ProgressInterval, inProgress, func(s func(*v1alpha1.BackingImageCopyStatus)) {
		if err := a.report(ctx, name, s); err != nil && ctx.Err() == nil {
			log.Error(err, "Cannot report progress")
		}
	})
	result, err := guarded(ctx, run, meter.progress)
	meter.stop()
	if err == nil {
		err = publish(d, uid)
	}
	switch {
	case ctx.Err() != nil:
		log.V(2).Info("Fetch stopped")
		return
	case err == nil:
		a.options.Metrics.fetched(a.options.Clock.Since(began))
		err = a.report(ctx, name, func(s *v1alpha1.BackingImageCopyStatus) {
			ready(s, result)
			s.LastVerifiedTime, s.VerifyResult = nil, "" // those were of another file
		})
	default:
		a.options.Metrics.fetchFailed(backingimage.KindOf(err))
		err = a.failed(ctx, name, err)
	}
	if err != nil {
		log.Error(err, "Cannot report the fetch's end; will find it on the disk")
	}
}

// guarded turns a panic into an error: an image that we cannot handle must not take the agent, and every other image, down.
func guarded(ctx context.Context, run attempt, report func(fetch.Progress)) (result fetch.Result, err error) {
	err = parallel.Guard(ctx, func() (err error) {
		result, err = run(ctx, report)
		return err
	})
	return result, err
}

func publish(d *disk.Disk, uid string) error {
	err := d.Usable() // it may have become another since the fetch began
	if err == nil {
		err = d.PublishImage(uid)
	}
	if err != nil {
		return fmt.Errorf("publish copy: %w", err)
	}
	return nil
}

// backoff is how long to wait after the n-th failed attempt: what the server asked for, else doubling up to a bound.
func (a *Agent) backoff(n int32, cause error) time.Duration {
	wait := a.options.RetryBase << min(max(n-1, 0), 10)
	return max(min(wait, a.options.RetryMax), min(source.RetryAfter(cause), time.Hour))
}
