package node

import (
	"cmp"
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/transfer"
)

// receive is an attempt at making a copy of what is uploaded: what arrives, or has arrived, on the disk of the first copy.
func (a *Agent) receive(c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (attempt, error) {
	if a.options.Uploads == nil {
		return nil, backingimage.Errorf(backingimage.Unsupported, "spec.sourceType: this agent takes no uploads; use one that listens for them")
	}
	if len(image.Spec.SourceParameters) > 0 {
		return nil, backingimage.Errorf(backingimage.Invalid, "spec.sourceParameters: an upload has none; delete the image and create it without them")
	}
	dir := d.Layout().StagedUpload(c.Spec.ImageUID)
	up, err := a.options.Uploads.Source(image.Name, c.Spec.ImageUID, dir)
	if err != nil {
		return nil, err
	}
	return a.following(up, dir, a.fetchFrom(c, d, image, func(context.Context) (source.Source, error) { return up, nil })), nil
}

// waitsForPeople reports whether what a copy is made of comes when somebody sends it: such a fetch may take days, and must not
// keep others from theirs.
func waitsForPeople(c *v1alpha1.BackingImageCopy, image *v1alpha1.BackingImage) bool {
	return c.Spec.Origin && image.Spec.SourceType == v1alpha1.SourceUpload
}

// following is an attempt whose source is an upload: it says what is waited for, and removes the upload when the copy is made
// of it, or never will be.
func (a *Agent) following(up *transfer.Source, dir string, run attempt) attempt {
	return func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error) {
		defer up.Close()
		w := &waiting{source: up, report: report}
		stop := w.watch(ctx, a.options.ProgressInterval)
		result, err := run(ctx, w.progress)
		stop()
		if err == nil || backingimage.Terminal(err) {
			if rerr := a.options.Uploads.Drop(dir); rerr != nil {
				klog.FromContext(ctx).Error(rerr, "Cannot remove an upload that has been used", "directory", dir)
			}
		}
		return result, err
	}
}

// waiting adds to a fetch's progress what an upload waits for. The fetch itself says nothing while nothing arrives.
type waiting struct {
	source *transfer.Source
	report func(fetch.Progress)

	mu   sync.Mutex
	last fetch.Progress
	said string // in place of the step
}

// uploading is the step of a fetch whose bytes are being uploaded.
const uploading = "uploading"

func (w *waiting) progress(p fetch.Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = p
	w.say()
}

// say reports the last progress in the words that fit it now. The caller has the lock.
func (w *waiting) say() {
	p := w.last
	p.Step = w.words()
	w.said = p.Step
	w.report(p)
}

// words are the step, or what it waits for.
func (w *waiting) words() string {
	if w.last.Step != fetch.Downloading {
		return w.last.Step
	}
	return cmp.Or(w.source.Waits(), uploading)
}

// look reports anew when the words have changed.
func (w *waiting) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.said != "" && w.words() != w.said {
		w.say()
	}
}

// watch looks now and then whether the words have changed, until the returned function is called.
func (w *waiting) watch(ctx context.Context, interval time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			w.look()
		}
	})
	return func() { cancel(); done.Wait() }
}
