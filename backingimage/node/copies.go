package node

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
)

// Reconcile brings one copy about, or takes it away.
func (a *Agent) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	uid, uuid, ok := v1alpha1.ParseCopyName(name)
	if !ok {
		return 0, nil
	}
	d, err := a.disks.Use(uuid)
	if backingimage.Is(err, backingimage.NotFound) {
		return 0, nil
	}
	c, exists := a.store.Copies.Get(name)
	if err != nil {
		return 0, a.diskTroubled(ctx, c, err)
	}
	if !exists || c.DeletionTimestamp != nil {
		return 0, a.remove(ctx, name, d)
	}
	if a.fetches.running(name) {
		if !c.Spec.Origin { // its end brings us back
			a.fetches.standDown(name)
		}
		return 0, nil
	}
	record, bad, err := a.inspect(ctx, c, d)
	if trouble := d.Usable(); err != nil && trouble != nil { // it went meanwhile: the copy is where the disk is
		return 0, a.diskTroubled(ctx, c, trouble)
	}
	switch {
	case err == nil && len(bad) == 0:
		return 0, a.adopt(ctx, c, d, record)
	case err == nil:
		return a.beginRepair(ctx, name, d, record, bad)
	}
	if !backingimage.Is(err, backingimage.NotFound) && !backingimage.Is(err, backingimage.Corrupt) {
		return 0, a.unreadable(ctx, c, err)
	}
	a.scrubs.stop(name)
	a.scrubs.complete.Delete(name)
	a.scrubs.unread.Delete(name)
	if err := a.lost(ctx, c, err); err != nil {
		return 0, err
	}
	if backingimage.Is(err, backingimage.Corrupt) {
		klog.FromContext(ctx).Error(err, "Copy is damaged; removing it to make it anew", "backingImage", c.Spec.Image)
	}
	if err := d.Layout().Remove(d.Layout().Image(uid)); err != nil { // what is staged stays: the fetch goes on with it
		return 0, fmt.Errorf("remove damaged copy: %w", err)
	}
	return a.begin(ctx, name, d)
}

// unreadable says at a copy that it cannot be looked at. Its files stay: that they are damaged nobody knows.
func (a *Agent) unreadable(ctx context.Context, c *v1alpha1.BackingImageCopy, why error) error {
	if backingimage.Is(why, backingimage.Unsupported) && c.Status.State != v1alpha1.CopyFailed {
		return a.failed(ctx, c.Name, why)
	}
	if len(c.Status.BadChunks) > 0 {
		why = fmt.Errorf("%s; %w", damageText(c.Status.BadChunks), why)
		if err := a.report(ctx, c.Name, func(s *v1alpha1.BackingImageCopyStatus) { s.Message = why.Error() }); err != nil {
			return err
		}
	}
	return fmt.Errorf("look at copy: %w", why)
}

// lost says at a copy that was there why it is no more, so that nobody counts on it.
func (a *Agent) lost(ctx context.Context, c *v1alpha1.BackingImageCopy, why error) error {
	if c.Status.State != v1alpha1.CopyReady && len(c.Status.BadChunks) == 0 {
		return nil
	}
	return a.report(ctx, c.Name, func(s *v1alpha1.BackingImageCopyStatus) {
		s.State, s.Reason, s.Progress, s.BadChunks = v1alpha1.CopyPending, backingimage.KindOf(why).String(), 0, nil
		s.Attempts, s.NextTryTime = 0, nil // those were of a repair
		s.ContentDigest = ""               // which would say that there is something to come back
		s.Message = "is made anew: " + why.Error()
	})
}

// remove removes a copy's files. That there is no object is asked of the API server: the cache does not know yet what came with a
// disk that was moved here.
func (a *Agent) remove(ctx context.Context, name string, d *disk.Disk) error {
	c, err := a.store.Copies.Live(ctx, name)
	if err == nil && c.DeletionTimestamp == nil {
		return nil // its change brings us back
	}
	if backingimage.IgnoreNotFound(err) != nil {
		return err
	}
	a.fetches.stop(name)
	a.scrubs.stop(name)
	uid, _, _ := v1alpha1.ParseCopyName(name)
	if err := a.removeFiles(d, uid); err != nil {
		a.keeper.poke()
		return fmt.Errorf("remove copy: %w", err)
	}
	return nil
}

// removeFiles takes a copy off a disk, with what is being made or uploaded of it.
func (a *Agent) removeFiles(d *disk.Disk, uid string) error {
	if err := disk.CheckName("image UID", uid); err != nil {
		return err
	}
	if a.options.Uploads != nil {
		if err := a.options.Uploads.Drop(d.Layout().StagedUpload(uid)); err != nil {
			return err
		}
	}
	return d.RemoveImage(uid)
}

// diskTroubled says at a copy that is not there yet what is wrong with its disk. The disk's recovery brings us back.
func (a *Agent) diskTroubled(ctx context.Context, c *v1alpha1.BackingImageCopy, trouble error) error {
	a.keeper.poke()
	if c == nil || c.DeletionTimestamp != nil || c.Status.State == v1alpha1.CopyReady || c.Final() || a.fetches.running(c.Name) {
		return nil
	}
	return a.report(ctx, c.Name, func(s *v1alpha1.BackingImageCopyStatus) {
		s.State, s.Reason, s.Message = v1alpha1.CopyPending, backingimage.KindOf(trouble).String(), trouble.Error()
	})
}

// adopt reports a copy that is on the disk.
func (a *Agent) adopt(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk, record fetch.Record) error {
	if c.Status.State == v1alpha1.CopyReady && c.Status.ContentDigest == record.ContentDigest {
		return nil
	}
	if err := d.PublishImage(c.Spec.ImageUID); err != nil { // a crash may have come before the last of it
		return fmt.Errorf("protect copy: %w", err)
	}
	return a.report(ctx, c.Name, func(s *v1alpha1.BackingImageCopyStatus) { ready(s, record.Result) })
}

// begin starts a fetch, unless it has to wait or cannot help.
func (a *Agent) begin(ctx context.Context, name string, d *disk.Disk) (time.Duration, error) {
	c, image, wait, err := a.due(ctx, name)
	if c == nil || image == nil {
		return wait, err
	}
	run, kind, waits, err := a.plan(ctx, c, d, image)
	if err != nil {
		return 0, a.failed(ctx, c.Name, err)
	}
	if waits == "" {
		waits = a.fetches.start(c.Name, kind, func(fctx context.Context) { a.fetch(fctx, c.Name, d, run) }, klog.FromContext(ctx))
	}
	if waits == "" {
		return 0, nil
	}
	return waitRetry, a.report(ctx, c.Name, func(s *v1alpha1.BackingImageCopyStatus) { s.State, s.Message = v1alpha1.CopyPending, waits })
}

// due returns a copy that is to be tried now, and its image; neither, and how long to wait, when it is not. It asks the API server,
// not the cache: how the last try ended may not have come back yet.
func (a *Agent) due(ctx context.Context, name string) (c *v1alpha1.BackingImageCopy, image *v1alpha1.BackingImage, wait time.Duration, err error) {
	c, err = a.store.Copies.Live(ctx, name)
	if err != nil {
		return nil, nil, 0, backingimage.IgnoreNotFound(err)
	}
	image, ok := a.store.Images.Get(c.Spec.Image)
	if !ok || string(image.UID) != c.Spec.ImageUID {
		return nil, nil, 0, nil // the controller is about to delete the copy; its images' change brings us back
	}
	switch {
	case c.Final() && !a.hope(c, image):
		return nil, nil, 0, nil
	case c.Status.State == v1alpha1.CopyFailed && !c.Final():
		if wait := c.Status.NextTryTime.Sub(a.options.Clock.Now()); wait > 0 {
			return nil, nil, wait, nil
		}
	}
	return c, image, 0, nil
}

// waitRetry is how often a copy that waits for another looks again, should it miss the other's end.
const waitRetry = 10 * time.Second

// report changes a copy's status and logs a change of state. A copy whose object has gone needs no report.
func (a *Agent) report(ctx context.Context, name string, change func(*v1alpha1.BackingImageCopyStatus)) error {
	var before, after v1alpha1.CopyState
	written, err := a.store.Copies.ModifyStatus(ctx, name, func(c *v1alpha1.BackingImageCopy) {
		before = c.Status.State
		change(&c.Status)
		c.Status.ObservedGeneration = c.Generation
		if after = c.Status.State; before != after {
			c.Status.LastStateTransitionTime = metav1.NewTime(a.options.Clock.Now())
		}
	})
	if err == nil && before != after {
		klog.FromContext(ctx).Info("Copy changed state", "backingImage", written.Spec.Image, "disk", written.Spec.DiskUUID, "from", before, "to", after, "message", written.Status.Message)
		a.options.Metrics.transition(after)
	}
	return backingimage.IgnoreNotFound(err)
}

// ready is the status of a copy that is verified and clonable.
func ready(s *v1alpha1.BackingImageCopyStatus, r fetch.Result) {
	*s = v1alpha1.BackingImageCopyStatus{
		State: v1alpha1.CopyReady, Progress: 100, Warning: r.Warning, ResolvedSource: r.Resolved, Format: r.Format, Size: r.SourceBytes, VirtualSize: r.VirtualBytes, RealSize: r.RealBytes,
		Checksum: r.Checksum, ContentDigest: r.ContentDigest, LastStateTransitionTime: s.LastStateTransitionTime, LastUsedTime: s.LastUsedTime,
		LastVerifiedTime: s.LastVerifiedTime, VerifiedRequestTime: s.VerifiedRequestTime, VerifyResult: s.VerifyResult,
	}
}

// failed is the report of a fetch that ended in an error: tried again later, at a time that the status tells, or, where
// that cannot help, never.
func (a *Agent) failed(ctx context.Context, name string, cause error) error {
	if disk.ProblemOf(cause) != "" {
		a.keeper.poke()
	}
	return a.report(ctx, name, func(s *v1alpha1.BackingImageCopyStatus) {
		s.State, s.Reason, s.Message = v1alpha1.CopyFailed, backingimage.KindOf(cause).String(), cause.Error()
		s.BytesPerSecond, s.ETASeconds = 0, 0
		s.Attempts++
		s.NextTryTime = nil
		if !backingimage.Terminal(cause) {
			next := metav1.NewTime(a.options.Clock.Now().Add(a.backoff(s.Attempts, cause)).Truncate(time.Second))
			s.NextTryTime = &next
			s.Message += "; next try at " + next.UTC().Format(time.RFC3339)
		}
	})
}
