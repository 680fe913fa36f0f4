package controller

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/event"
)

// apply brings a decision about. Each step is safe to repeat; one that fails ends it, and the next plan goes on from there.
// Who stands down does so before another is named, so that two never fetch from the source.
func (c *Images) apply(ctx context.Context, s State, d Decision) error {
	for _, step := range []func(context.Context, State, Decision) error{c.delete, c.demote, c.create, c.nameOrigin, c.move, c.write, c.refuse} {
		if err := step(ctx, s, d); err != nil {
			return err
		}
	}
	return nil
}

// delete removes copies, once the API server confirms that as many others are ready as the cache says: it may not know yet
// that one of them was found damaged.
func (c *Images) delete(ctx context.Context, s State, d Decision) error {
	if len(d.Safe) > 0 {
		if err := c.confirm(ctx, s, d); err != nil {
			return err
		}
	}
	for _, name := range d.Delete {
		if err := c.store.Copies.Delete(ctx, name); err != nil {
			return err
		}
		c.record(ctx, s, "CopyRemoved", false, fmt.Sprintf("removed copy %s: %s", name, d.Why[name]))
	}
	return nil
}

// confirm is nil when as many of the safe copies as the image needs are ready now, else NotReady.
func (c *Images) confirm(ctx context.Context, s State, d Decision) error {
	need := max(int(s.Image.Spec.MinNumberOfCopies), 1)
	for _, name := range d.Safe {
		b, err := c.store.Copies.Live(ctx, name)
		if backingimage.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil && b.DeletionTimestamp == nil && b.Status.State == v1alpha1.CopyReady {
			need--
		}
		if need == 0 {
			return nil
		}
	}
	return backingimage.Errorf(backingimage.NotReady, "image %s: copies that others rely on are not ready any more; planning again", s.Image.Name)
}

func (c *Images) demote(ctx context.Context, s State, d Decision) error {
	for _, name := range d.Demote {
		if err := c.modify(ctx, name, func(b *v1alpha1.BackingImageCopy) { b.Spec.Origin = false }); err != nil {
			return err
		}
		c.record(ctx, s, "OriginStoodDown", false, fmt.Sprintf("copy %s fetches from the source no more", name))
	}
	return nil
}

func (c *Images) create(ctx context.Context, s State, d Decision) error {
	for _, spec := range d.Create {
		copy := &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{
			Name:            v1alpha1.CopyName(spec.ImageUID, spec.DiskUUID),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(s.Image, v1alpha1.GroupVersion.WithKind("BackingImage"))},
		}, Spec: spec}
		_, err := c.store.Copies.Create(ctx, copy)
		if backingimage.Is(err, backingimage.Conflict) {
			continue // the cache does not have it yet
		}
		if err != nil {
			return err
		}
		c.record(ctx, s, "CopyCreated", false, fmt.Sprintf("asked for a copy on disk %s of node %s", spec.DiskUUID, spec.NodeName))
	}
	return nil
}

func (c *Images) nameOrigin(ctx context.Context, s State, d Decision) error {
	if d.Origin == "" {
		return nil
	}
	c.record(ctx, s, "OriginNamed", false, fmt.Sprintf("copy %s fetches from the source", d.Origin))
	return c.modify(ctx, d.Origin, func(b *v1alpha1.BackingImageCopy) { b.Spec.Origin = true })
}

// move follows disks to other nodes.
func (c *Images) move(ctx context.Context, _ State, d Decision) error {
	for _, m := range d.Moved {
		klog.FromContext(ctx).Info("Copy's disk is on another node", "copy", m.Copy, "node", m.NodeName)
		if err := c.modify(ctx, m.Copy, func(b *v1alpha1.BackingImageCopy) { b.Spec.NodeName = m.NodeName }); err != nil {
			return err
		}
	}
	return nil
}

// write puts into the copies' status what the controller knows better than their agents: that nothing is known of them, and
// when they were used.
func (c *Images) write(ctx context.Context, s State, d Decision) error {
	for _, n := range c.silences.news(s, d) {
		err := c.modifyStatus(ctx, n.Copy, func(status *v1alpha1.BackingImageCopyStatus) {
			status.State, status.Message, status.LastStateTransitionTime = v1alpha1.CopyUnknown, n.Message, metav1.NewTime(s.Now)
			status.BytesPerSecond, status.ETASeconds = 0, 0
		})
		if err != nil {
			return err
		}
		c.silences.wrote(n.Copy)
		c.record(ctx, s, "CopyUnknown", true, fmt.Sprintf("nothing is known of copy %s: %s", n.Copy, n.Message))
	}
	for _, u := range d.Used {
		at := metav1.NewTime(u.At)
		if err := c.modifyStatus(ctx, u.Copy, func(status *v1alpha1.BackingImageCopyStatus) { status.LastUsedTime = &at }); err != nil {
			return err
		}
	}
	return nil
}

// refuse answers those who asked for a cleanup that cannot be: first why, then that.
func (c *Images) refuse(ctx context.Context, s State, d Decision) error {
	for _, n := range d.Refused {
		if err := c.modifyStatus(ctx, n.Copy, func(status *v1alpha1.BackingImageCopyStatus) { status.Message = n.Message }); err != nil {
			return err
		}
		if err := c.modify(ctx, n.Copy, func(b *v1alpha1.BackingImageCopy) { b.Spec.CleanupRequested = false }); err != nil {
			return err
		}
		c.record(ctx, s, "CleanupRefused", true, fmt.Sprintf("copy %s %s", n.Copy, n.Message))
	}
	return nil
}

// modify changes a copy's spec; a copy that is gone needs no change.
func (c *Images) modify(ctx context.Context, name string, change func(*v1alpha1.BackingImageCopy)) error {
	_, err := c.store.Copies.Modify(ctx, name, change)
	return backingimage.IgnoreNotFound(err)
}

// modifyStatus changes a copy's status; a copy that is gone needs no change.
func (c *Images) modifyStatus(ctx context.Context, name string, change func(*v1alpha1.BackingImageCopyStatus)) error {
	_, err := c.store.Copies.ModifyStatus(ctx, name, func(b *v1alpha1.BackingImageCopy) { change(&b.Status) })
	return backingimage.IgnoreNotFound(err)
}

func (c *Images) record(ctx context.Context, s State, reason string, warning bool, message string) {
	c.options.Recorder.Record(ctx, event.Event{About: event.Ours("BackingImage", s.Image.Name, s.Image.UID), Warning: warning, Reason: reason, Message: message})
}
