package node

import (
	"context"
	"hash/fnv"
	"math"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
)

// scrubs are the goroutines that read ready copies again, at most one on each disk.
type scrubs struct {
	*fetches
	woken    chan struct{}
	answered sync.Map // requests that were, by copy: the cache may not know yet
	complete sync.Map // copies all of whose damage is known, until it is repaired
	unread   sync.Map // copies of which only a part was read since damage was found
	hopeless sync.Map // who had the image when a copy's repair failed for good, by copy
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
	for _, kept := range []*sync.Map{&s.answered, &s.complete, &s.unread, &s.hopeless} {
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
		for _, d := range a.disks.List() {
			if d.Usable() == nil {
				a.scrubNext(ctx, d.UUID(), d)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.scrubs.woken:
		case <-ticker.C():
		}
	}
}

// checkCopies has every copy looked at whose files are not as they must be, as far as can be told without reading them. A disk that
// is not there, or may hang, is not asked: its copies are where it is.
func (a *Agent) checkCopies() {
	for _, c := range a.store.Copies.List() {
		ready, bad := c.Status.State == v1alpha1.CopyReady, len(c.Status.BadChunks) > 0
		if !ready && !bad {
			continue
		}
		d, err := a.disks.Use(c.Spec.DiskUUID)
		if err != nil {
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
	a.scrubs.start(next.Name, fetchKind{}, func(ctx context.Context) { a.scrub(ctx, next, d) }, klog.FromContext(ctx))
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
