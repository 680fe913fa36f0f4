package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// progressInterval is how often an image's status is written when nothing but progress changed: with many receivers at once,
// each of their reports would else write the whole of it.
const progressInterval = 2 * time.Second

// reports remembers when each image's status was written last.
type reports struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	last  map[string]time.Time // by image
}

func newReports(c clock.PassiveClock) *reports {
	return &reports{clock: c, last: map[string]time.Time{}}
}

// wait is how long the next report of mere progress has to wait; 0: not at all.
func (r *reports) wait(image string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, known := r.last[image]
	if !known {
		return 0
	}
	return max(progressInterval-r.clock.Since(last), 0)
}

func (r *reports) wrote(image string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[image] = r.clock.Now()
}

func (r *reports) forget(image string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, image)
}

// report writes the image's status, tells of what changed in it, and returns when to look at the image again.
func (c *Images) report(ctx context.Context, s State, d Decision) (again time.Duration, err error) {
	after := s.Image.Status.DeepCopy()
	summarize(s, d, after)
	if apiequality.Semantic.DeepEqual(s.Image.Status, *after) {
		return d.Again, nil
	}
	if apiequality.Semantic.DeepEqual(withoutProgress(s.Image.Status), withoutProgress(*after)) {
		if wait := c.reports.wait(s.Image.Name); wait > 0 {
			return sooner(d.Again, wait), nil
		}
	}
	var before v1alpha1.BackingImageStatus
	_, err = c.store.Images.ModifyStatus(ctx, s.Image.Name, func(i *v1alpha1.BackingImage) {
		before = *i.Status.DeepCopy()
		summarize(s, d, &i.Status)
		after = &i.Status
	})
	if err != nil {
		return 0, backingimage.IgnoreNotFound(err)
	}
	c.reports.wrote(s.Image.Name)
	c.tell(ctx, s, before, *after)
	return d.Again, nil
}

// withoutProgress is a status without what changes with each report of a fetch. The original is not changed.
func withoutProgress(s v1alpha1.BackingImageStatus) v1alpha1.BackingImageStatus {
	s.Progress = 0
	s.DiskFileStatusMap = maps.Clone(s.DiskFileStatusMap)
	for disk, f := range s.DiskFileStatusMap {
		f.Progress = 0
		s.DiskFileStatusMap[disk] = f
	}
	return s
}

// sooner is the less of two waits, where 0 is none.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// tell records what changed of the image as a whole.
func (c *Images) tell(ctx context.Context, s State, before, after v1alpha1.BackingImageStatus) {
	if before.State != after.State {
		bad := after.State == v1alpha1.CopyFailed || after.State == v1alpha1.CopyUnknown
		message := fmt.Sprintf("image %s is %s", s.Image.Name, after.State)
		if after.Message != "" {
			message += ": " + after.Message
		}
		c.record(ctx, s, "State", bad, message)
	}
	for _, disk := range slices.Sorted(maps.Keys(after.DiskFileStatusMap)) {
		now := after.DiskFileStatusMap[disk]
		if now.State == v1alpha1.CopyEvicting && before.DiskFileStatusMap[disk].State != now.State {
			c.record(ctx, s, "CopyEvicting", false, fmt.Sprintf("the copy on disk %s is to leave: %s", disk, now.Message))
		}
	}
	was := meta.IsStatusConditionTrue(before.Conditions, v1alpha1.ConditionHealthy)
	if now := meta.FindStatusCondition(after.Conditions, v1alpha1.ConditionHealthy); was != (now.Status == "True") {
		c.record(ctx, s, now.Reason, was, fmt.Sprintf("image %s: %s", s.Image.Name, now.Message))
	}
}
