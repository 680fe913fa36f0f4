package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/parallel"
)

// scrub reads a copy again and reports what it found. Damage is marked when it is found; it is repaired when all of it is known.
func (a *Agent) scrub(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk) {
	defer a.scrubs.wake()
	defer a.loop.Enqueue(c.Name)
	defer a.scrubs.finish(c.Name)
	s := &scrub{agent: a, copy: c, disk: d, dir: d.Layout().Image(c.Spec.ImageUID), asked: a.scrubs.asked(c)}
	s.free.Store(s.asked)
	log := klog.FromContext(ctx).WithValues("backingImage", c.Spec.Image, "disk", c.Spec.DiskUUID)
	log.V(2).Info("Verifying copy", "asked", s.asked)
	meter := newMeter(a.options.Clock, s.reportInterval(), s.describe, func(change func(*v1alpha1.BackingImageCopyStatus)) {
		if err := a.report(ctx, c.Name, change); err != nil && ctx.Err() == nil {
			log.Error(err, "Cannot report progress")
		}
	})
	err := parallel.Guard(ctx, func() error {
		return fetch.Scrub(ctx, s.dir, fetch.ScrubOptions{Pace: s.pace, Found: func(chunk int64) error { return s.found(ctx, chunk) }}, meter.progress)
	})
	meter.stop()
	s.mark(ctx)
	if ctx.Err() != nil {
		return
	}
	a.scrubs.unread.Delete(c.Name)
	if damage := new(fetch.BadChunks); errors.As(err, &damage) {
		a.scrubs.complete.Store(c.Name, true)
	}
	if err := a.report(ctx, c.Name, func(status *v1alpha1.BackingImageCopyStatus) { s.verified(status, err) }); err != nil {
		log.Error(err, "Cannot report a verification")
		return
	}
	if s.asked {
		a.scrubs.answered.Store(c.Name, c.Spec.VerifyRequestedTime.Time)
	}
}

// scrub is one verification of one copy.
type scrub struct {
	agent *Agent
	copy  *v1alpha1.BackingImageCopy
	disk  *disk.Disk
	dir   string
	asked bool        // by somebody who waits
	free  atomic.Bool // of limits: somebody waits, or the copy is of no use until it is repaired

	mu   sync.Mutex
	next time.Time // when the disk may be read again

	unmarked []int64 // damaged chunks that are about to be marked
	marked   time.Time
}

// unaskedInterval is between two reports of a verification that nobody asked for.
const unaskedInterval = 10 * time.Second

func (s *scrub) reportInterval() time.Duration {
	if s.asked {
		return s.agent.options.ProgressInterval
	}
	return max(s.agent.options.ProgressInterval, unaskedInterval)
}

// pace waits until so many bytes may be read: at the rate of scrubs, and while nothing is fetched to the disk.
func (s *scrub) pace(ctx context.Context, bytes int64) error {
	o := s.agent.options
	for !s.free.Load() && s.agent.fetches.onDisk(s.copy.Spec.DiskUUID) {
		if err := s.sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	o.Metrics.scrubbed.Add(float64(bytes))
	if s.free.Load() {
		return ctx.Err()
	}
	s.mu.Lock()
	now := o.Clock.Now()
	wait := max(s.next.Sub(now), 0)
	s.next = now.Add(wait + time.Duration(float64(bytes)/float64(o.ScrubRate)*float64(time.Second)))
	s.mu.Unlock()
	return s.sleep(ctx, wait)
}

func (s *scrub) sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.agent.options.Clock.After(d):
		return nil
	}
}

// markInterval is between two marks: a medium that gives up has thousands of bad chunks.
const markInterval = time.Second

// found marks a bad chunk, on the disk before anywhere else: the first at once, others soon. What a disk that was pulled out
// does not give is not damaged: then its error.
func (s *scrub) found(ctx context.Context, chunk int64) error {
	if err := s.disk.Usable(); err != nil {
		return err
	}
	a := s.agent
	s.free.Store(true)
	a.options.Metrics.badChunks.Inc()
	klog.FromContext(ctx).Error(nil, "Found a damaged chunk", "backingImage", s.copy.Spec.Image, "disk", s.copy.Spec.DiskUUID, "chunk", chunk)
	s.unmarked = append(s.unmarked, chunk)
	if a.options.Clock.Since(s.marked) < markInterval {
		return nil
	}
	found := slices.Clone(s.unmarked)
	s.mark(ctx)
	if err := a.report(ctx, s.copy.Name, func(status *v1alpha1.BackingImageCopyStatus) { bad(status, found...) }); err != nil && ctx.Err() == nil {
		klog.FromContext(ctx).Error(err, "Cannot report a damaged chunk")
	}
	return nil
}

// mark marks what was found. A mark that cannot be made is no reason to say nothing: then the status alone has it.
func (s *scrub) mark(ctx context.Context) {
	if len(s.unmarked) == 0 {
		return
	}
	if err := fetch.MarkDamaged(s.dir, s.unmarked...); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot mark damaged chunks", "directory", s.dir, "chunks", s.unmarked)
	}
	s.unmarked, s.marked = nil, s.agent.options.Clock.Now()
}

// maxBadListed bounds status.badChunks.
const maxBadListed = 64

// bad is the status of a copy of which chunks are known to be damaged.
func bad(s *v1alpha1.BackingImageCopyStatus, chunks ...int64) {
	s.BadChunks = append(s.BadChunks, chunks...)
	slices.Sort(s.BadChunks)
	s.BadChunks = slices.Compact(s.BadChunks)
	s.State, s.Reason, s.NextTryTime = v1alpha1.CopyInProgress, backingimage.Corrupt.String(), nil
	s.Message = damageText(s.BadChunks) + "; looking for more"
	s.BadChunks = listed(s.BadChunks)
}

// describe is the status of a copy that is being verified: it stays as it is, with how far that is.
func (s *scrub) describe(status *v1alpha1.BackingImageCopyStatus, p fetch.Progress, rate int64) {
	ready := status.State == v1alpha1.CopyReady
	count(status, p, rate)
	what := "verifying"
	if len(status.BadChunks) > 0 {
		what = damageText(status.BadChunks) + "; verifying the rest"
	}
	status.Message = fmt.Sprintf("%s, %d %%", what, status.Progress)
	if ready {
		status.Progress = 100
	}
}

// verified is the status after a verification that ended, with or without an error.
func (s *scrub) verified(status *v1alpha1.BackingImageCopyStatus, err error) {
	status.BytesDone, status.BytesTotal, status.BytesPerSecond, status.ETASeconds = 0, 0, 0, 0
	if s.copy.VerifyPending() {
		status.VerifiedRequestTime = s.copy.Spec.VerifyRequestedTime
	}
	var damage *fetch.BadChunks
	now := metav1.NewTime(s.agent.options.Clock.Now())
	switch {
	case errors.As(err, &damage):
		status.LastVerifiedTime = &now
		status.VerifyResult = damageText(damage.Chunks)
		bad(status, damage.Chunks...)
		status.Message = damageText(damage.Chunks) + "; about to be repaired"
	case err != nil:
		status.VerifyResult = "could not be verified: " + err.Error()
		status.Message, status.Reason = status.VerifyResult, backingimage.KindOf(err).String()
	default:
		status.LastVerifiedTime = &now
		status.VerifyResult, status.Message, status.Reason, status.BadChunks = v1alpha1.VerifiedGood, "", "", nil
		if status.State == v1alpha1.CopyFailed { // for the damage that was
			status.State, status.NextTryTime = v1alpha1.CopyInProgress, nil
		}
	}
}
