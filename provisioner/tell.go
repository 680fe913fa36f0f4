package provisioner

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Times of what is told at claims: nothing of a wait that is over within waitsQuietly, and how far a wait is once in progressEvery.
const (
	waitsQuietly  = 2 * time.Second
	progressEvery = 10 * time.Second
)

// Teller tells at claims what their volumes wait for and how far that is, what is wrong with them, and that they are ready after a wait.
// What refuses a CreateVolume, the provisioner sidecar tells there.
type Teller struct {
	store    *store.Store
	recorder event.Recorder
	clock    clock.WithTicker
	loop     *reconcile.Loop

	mu   sync.Mutex
	last map[string]told // by volume
}

// told is what was last told of a volume, and when.
type told struct {
	tale
	at time.Time
}

// tale is what there is to tell of a volume; the zero tale is nothing.
type tale struct {
	reason, message string
	warning         bool
	progress        bool // more of it will come
}

// NewTeller makes the loop; it starts nothing.
func NewTeller(s *store.Store, r event.Recorder, c clock.WithTicker) *Teller {
	t := &Teller{store: s, recorder: r, clock: c, last: map[string]told{}}
	t.loop = reconcile.New("claims", t, reconcile.Options{Clock: c, Workers: 1})
	return t
}

// Run tells until ctx ends.
func (t *Teller) Run(ctx context.Context) error {
	if err := t.store.Synced(ctx); err != nil {
		return err
	}
	defer t.store.Volumes.OnChange(func(v *v1alpha1.Volume) { t.loop.Enqueue(v.Name) })()
	defer t.store.Copies.OnChange(func(c *v1alpha1.BackingImageCopy) {
		for _, v := range t.store.Volumes.By(store.ByImage, c.Spec.Image) {
			if v.Waits() && v.Spec.Image.UID == c.Spec.ImageUID && (v.Spec.DiskUUID == c.Spec.DiskUUID || c.Spec.Origin) {
				t.loop.Enqueue(v.Name)
			}
		}
	})()
	return t.loop.Run(ctx)
}

// Reconcile tells of one volume, if there is news.
func (t *Teller) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	v, ok := t.store.Volumes.Get(name)
	if !ok || v.Spec.Claim == nil || v.Spec.Claim.UID == "" || v.DeletionTimestamp != nil {
		t.remember(name, told{})
		return 0, nil
	}
	now, before := t.clock.Now(), t.lastOf(name)
	news := t.taleOf(ctx, v)
	wait := worth(news, before, now, v.CreationTimestamp.Time)
	if wait != 0 {
		return max(wait, 0), nil
	}
	if news != (tale{}) {
		t.recorder.Record(ctx, event.Event{About: claimObject(v.Spec.Claim), Warning: news.warning, Reason: news.reason, Message: news.message, Latest: news.progress})
	}
	t.remember(name, told{news, now})
	return 0, nil
}

// worth says when to tell news: 0 for now, more for after that long, less for never.
func worth(news tale, before told, now, created time.Time) time.Duration {
	switch {
	case news == before.tale:
		return -1
	case news.reason == reasonReady && before.reason == "":
		return -1 // it was ready at once, or long ago
	case news.progress && before.reason == "":
		return max(waitsQuietly-now.Sub(created), 0)
	case news.progress && news.reason == before.reason:
		return max(progressEvery-now.Sub(before.at), 0)
	}
	return 0
}

// Reasons of events at claims.
const (
	reasonWaiting       = "WaitingForImage"
	reasonImageFailing  = "ImageFailing"
	reasonVolumeFailing = "VolumeFailing" // and is tried again
	reasonReady         = "VolumeReady"
	reasonFailed        = "VolumeFailed" // for good
	reasonIll           = "VolumeAbnormal"
)

// taleOf is what there is to tell of a volume now.
func (t *Teller) taleOf(ctx context.Context, v *v1alpha1.Volume) tale {
	s := v.Status
	switch {
	case s.State == v1alpha1.VolumeFailed:
		return tale{reason: reasonFailed, message: fmt.Sprintf("volume %s failed: %s", v.Name, s.Message), warning: true}
	case s.State == v1alpha1.VolumeReady && s.Reason != "":
		return tale{reason: reasonIll, message: fmt.Sprintf("volume %s: %s", v.Name, s.Message), warning: true}
	case s.State == v1alpha1.VolumeReady:
		return tale{reason: reasonReady, message: fmt.Sprintf("volume %s is ready on node %s%s", v.Name, v.Spec.NodeName, madeFrom(v))}
	case s.Reason != "" && s.Reason != backingimage.NotReady.String():
		return tale{reason: reasonVolumeFailing, message: fmt.Sprintf("volume %s: %s", v.Name, s.Message), warning: true, progress: true}
	case !v.Waits():
		return tale{}
	}
	c, placed := t.store.Copies.Get(v1alpha1.CopyName(v.Spec.Image.UID, v.Spec.DiskUUID))
	if placed && (c.Status.State == v1alpha1.CopyFailed || c.Status.State == v1alpha1.CopyUnknown) {
		return tale{reason: reasonImageFailing, message: Progress(c), warning: true, progress: true}
	}
	return tale{reason: reasonWaiting, message: waitsFor(ctx, t.store, v), progress: true}
}

func madeFrom(v *v1alpha1.Volume) string {
	if v.Spec.Image == nil {
		return ""
	}
	return ", cloned from backing image " + v.Spec.Image.Name
}

func claimObject(c *v1alpha1.VolumeClaim) event.Object {
	return event.Object{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID}
}

func (t *Teller) lastOf(volume string) told {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last[volume]
}

// remember forgets a volume of which nothing was told.
func (t *Teller) remember(volume string, what told) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if what == (told{}) || what.tale == (tale{}) {
		delete(t.last, volume)
		return
	}
	t.last[volume] = what
}
