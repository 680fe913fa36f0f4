package node

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
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

// scrubs are the goroutines that read ready copies again, at most one on each disk.
type scrubs struct {
	*fetches
	woken    chan struct{}
	answered sync.Map // requests that were, by copy: the cache may not know yet
	complete sync.Map // copies all of whose damage is known, until it is repaired
	unread   sync.Map // copies of which only a part was read since damage was found
	// scrubAll's own:
	after   map[string]time.Time // when copies may be read again unasked, lest one that cannot be is read all the time
	unasked map[string]string    // the copy that was last read unasked, by disk
}

func newScrubs() *scrubs {
	return &scrubs{fetches: newFetches(math.MaxInt), woken: make(chan struct{}, 1), after: map[string]time.Time{}, unasked: map[string]string{}}
}

// asked reports whether somebody waits for a copy to be read.
func (s *scrubs) asked(c *v1alpha1.BackingImageCopy) bool {
	if !c.VerifyPending() {
		return false
	}
	last, _ := s.answered.Load(c.Name)
	return last == nil || last.(time.Time).Before(c.Spec.VerifyRequestedTime.Time)
}

// forget drops what is kept about copies that are gone.
func (s *scrubs) forget(exists func(name string) bool) {
	for name := range s.after {
		if !exists(name) {
			delete(s.after, name)
		}
	}
	for _, kept := range []*sync.Map{&s.answered, &s.complete, &s.unread} {
		kept.Range(func(name, _ any) bool {
			if !exists(name.(string)) {
				kept.Delete(name)
			}
			return true
		})
	}
}

// wake makes scrubAll look again.
func (s *scrubs) wake() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// Intervals of scrubAll.
const (
	checkInterval = time.Minute      // between two looks whether copies are there at all
	scrubRetry    = 10 * time.Minute // after a copy could not be read
)

// scrubAll reads copies again when they are due or somebody asked for it, until ctx ends. Now and then it looks whether
// each copy's files are there.
func (a *Agent) scrubAll(ctx context.Context) error {
	ticker := a.options.Clock.NewTicker(max(min(a.options.Heartbeat, a.options.ScrubInterval/10), 10*time.Millisecond))
	defer ticker.Stop()
	checked := a.options.Clock.Now()
	for {
		if now := a.options.Clock.Now(); now.Sub(checked) >= min(checkInterval, a.options.Heartbeat) {
			checked = now
			a.checkCopies()
			a.scrubs.forget(func(name string) bool { _, exists := a.store.Copies.Get(name); return exists })
		}
		for uuid, d := range a.disks {
			a.scrubNext(ctx, uuid, d)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.scrubs.woken:
		case <-ticker.C():
		}
	}
}

// checkCopies has every copy looked at whose files are not as they must be, as far as can be told without reading them.
func (a *Agent) checkCopies() {
	for _, c := range a.store.Copies.List() {
		d, mine := a.disks[c.Spec.DiskUUID]
		ready, bad := c.Status.State == v1alpha1.CopyReady, len(c.Status.BadChunks) > 0
		if !mine || !ready && !bad {
			continue
		}
		if err := fetch.Check(d.Layout().Image(c.Spec.ImageUID)); err != nil && (ready || !backingimage.Is(err, backingimage.NotReady)) {
			a.loop.Enqueue(c.Name)
		}
	}
}

// scrubNext begins to read that copy on a disk which has been due for longest. One that somebody asked for comes first, and does
// not wait for one that nobody did.
func (a *Agent) scrubNext(ctx context.Context, uuid string, d *disk.Disk) {
	next := a.scrubDueOn(uuid)
	if next == nil {
		return
	}
	asked, unasked := a.scrubs.asked(next), a.scrubs.unasked[uuid]
	if asked && a.scrubs.running(unasked) {
		a.scrubs.stop(unasked)
		delete(a.scrubs.after, unasked)
	}
	if a.scrubs.onDisk(uuid) {
		return
	}
	if a.scrubs.unasked[uuid] = ""; !asked {
		a.scrubs.unasked[uuid] = next.Name
		a.scrubs.after[next.Name] = a.options.Clock.Now().Add(min(scrubRetry, a.options.ScrubInterval))
	}
	a.scrubs.start(next.Name, false, func(ctx context.Context) { a.scrub(ctx, next, d) }, klog.FromContext(ctx))
}

// scrubDueOn is the copy on a disk that has been due for longest; nil when none is.
func (a *Agent) scrubDueOn(uuid string) *v1alpha1.BackingImageCopy {
	var next *v1alpha1.BackingImageCopy
	since := a.options.Clock.Now()
	for _, c := range a.store.Copies.List() {
		if c.Spec.DiskUUID != uuid || c.DeletionTimestamp != nil {
			continue
		}
		if due, is := a.scrubDue(c); is && (due.Before(since) || next == nil && due.Equal(since)) {
			next, since = c, due
		}
	}
	return next
}

// scrubDue is when a copy is to be read again: at once when somebody asked for it, else at a time that depends on its name, so that
// copies which were made together are not read together. A copy that is not ready is not read, except, when somebody asked, one that
// nobody could repair.
func (a *Agent) scrubDue(c *v1alpha1.BackingImageCopy) (due time.Time, is bool) {
	asked := a.scrubs.asked(c)
	if c.Status.State != v1alpha1.CopyReady {
		return time.Time{}, asked && c.Status.State == v1alpha1.CopyFailed && len(c.Status.BadChunks) > 0
	}
	if asked {
		return time.Time{}, true
	}
	if _, unread := a.scrubs.unread.Load(c.Name); !unread {
		due = scrubTime(c, a.options.ScrubInterval)
	}
	if after := a.scrubs.after[c.Name]; due.Before(after) {
		due = after
	}
	return due, true
}

// scrubTime is when a copy that is read once in an interval is to be read again.
func scrubTime(c *v1alpha1.BackingImageCopy, interval time.Duration) time.Time {
	last := c.Status.LastStateTransitionTime.Time
	if c.Status.LastVerifiedTime != nil {
		last = c.Status.LastVerifiedTime.Time
	}
	h := fnv.New32a()
	h.Write([]byte(c.Name))
	early := time.Duration(float64(interval) / 4 * float64(h.Sum32()) / math.MaxUint32)
	return last.Add(interval - early)
}

// scrub reads a copy again and reports what it found. Damage is marked when it is found; it is repaired when all of it is known.
func (a *Agent) scrub(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk) {
	defer a.scrubs.wake()
	defer a.loop.Enqueue(c.Name)
	defer a.scrubs.finish(c.Name)
	s := &scrub{agent: a, copy: c, dir: d.Layout().Image(c.Spec.ImageUID), asked: a.scrubs.asked(c)}
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
	dir   string
	asked bool        // by somebody who waits
	free  atomic.Bool // of limits: somebody waits, or the copy is of no use until it is repaired

	mu   sync.Mutex
	next time.Time // when the disk may be read again

	unmarked []int64 // damaged chunks that are about to be marked
	marked   time.Time
}

// unaskedInterval is between two reports of a verification that nobody asked for.
const unaskedInterval = 30 * time.Second

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

// found marks a bad chunk, on the disk before anywhere else: the first at once, others soon.
func (s *scrub) found(ctx context.Context, chunk int64) error {
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
		status.VerifyResult, status.Message, status.Reason, status.BadChunks = "every chunk agrees with the manifest", "", "", nil
		if status.State == v1alpha1.CopyFailed { // for the damage that was
			status.State, status.NextTryTime = v1alpha1.CopyInProgress, nil
		}
	}
}
