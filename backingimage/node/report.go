package node

import (
	"context"
	"errors"
	"fmt"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
)

// report writes what each disk is like into its status, those that are open and those that are registered on this node and are not; then, for
// whoever waits for it, what came of the wishes into the node's.
func (k *keeper) report(ctx context.Context, outcomes []outcome) error {
	var errs []error
	for _, d := range k.set.List() {
		errs = append(errs, k.reportDisk(ctx, d.UUID(), func(s *v1alpha1.DiskStatus) metav1.Condition { return k.describe(ctx, d, s) }))
	}
	for _, object := range k.store.Disks.List() {
		if _, open := k.set.Get(object.Name); open || object.Spec.NodeName != k.node {
			continue
		}
		errs = append(errs, k.reportDisk(ctx, object.Name, func(*v1alpha1.DiskStatus) metav1.Condition { return missing(object, outcomes) }))
	}
	errs = append(errs, k.reportWishes(ctx, outcomes))
	return errors.Join(errs...)
}

func (k *keeper) reportWishes(ctx context.Context, outcomes []outcome) error {
	var list []v1alpha1.NodeDisk
	for _, o := range outcomes {
		entry := v1alpha1.NodeDisk{Path: o.wish.path, FromFlag: o.wish.fromFlag, UUID: k.last(o.wish.path)}
		if o.disk != nil {
			entry.UUID = o.disk.UUID()
		}
		if o.err != nil {
			entry.Reason, entry.Message = reasonOf(o.err), o.err.Error()
		}
		list = append(list, entry)
	}
	_, err := k.store.Nodes.ModifyStatus(ctx, k.node, func(n *v1alpha1.StorageNode) {
		if !apiequality.Semantic.DeepEqual(n.Status.Disks, list) {
			n.Status.Disks = list
		}
	})
	return err
}

// reportDisk writes a disk's status. A disk whose object has gone is registered anew by the next pass, if it is wished.
func (k *keeper) reportDisk(ctx context.Context, uuid string, describe func(*v1alpha1.DiskStatus) metav1.Condition) error {
	changed := false
	var ready metav1.Condition
	_, err := k.store.Disks.ModifyStatus(ctx, uuid, func(now *v1alpha1.Disk) {
		if changed = false; now.Spec.NodeName != k.node {
			return
		}
		ready = describe(&now.Status)
		before := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionReady)
		changed = before == nil || before.Status != ready.Status || before.Reason != ready.Reason
		meta.SetStatusCondition(&now.Status.Conditions, ready)
	})
	if err == nil && changed {
		klog.FromContext(ctx).Info("Disk changed state", "disk", uuid, "ready", ready.Status, "reason", ready.Reason, "message", ready.Message)
	}
	return backingimage.IgnoreNotFound(err)
}

// describe writes what an open disk is like into its status, and returns its Ready condition.
func (k *keeper) describe(ctx context.Context, d *disk.Disk, s *v1alpha1.DiskStatus) metav1.Condition {
	err := k.found[d.UUID()]
	if reasonOf(err) == v1alpha1.DiskSilent {
		return notReady(v1alpha1.DiskSilent, err.Error()) // whatever is asked of it now, hangs
	}
	total, available, cerr := d.Capacity()
	if cerr == nil {
		s.CapacityBytes, s.AvailableBytes = total, available
		meta.SetStatusCondition(&s.Conditions, full(d.Room(total, available)))
	}
	s.Filesystem, s.Pool = d.Filesystem(), d.Pool()
	s.Orphans = k.orphans(ctx, d)
	if err = errors.Join(err, cerr); err != nil {
		return notReady(reasonOf(err), err.Error())
	}
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.DiskUsable, Message: "the disk can be used"}
}

// full is the condition that says whether there is room for anything new.
func full(err error) metav1.Condition {
	if err != nil {
		return metav1.Condition{Type: v1alpha1.ConditionFull, Status: metav1.ConditionTrue, Reason: string(disk.ProblemNoRoom), Message: err.Error()}
	}
	return metav1.Condition{Type: v1alpha1.ConditionFull, Status: metav1.ConditionFalse, Reason: "EnoughRoom", Message: "there is room for new copies and volumes"}
}

func notReady(reason, message string) metav1.Condition {
	return metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason, Message: message}
}

// missing is the Ready condition of a disk that is registered on this node and not open.
func missing(object *v1alpha1.Disk, outcomes []outcome) metav1.Condition {
	for _, o := range outcomes {
		switch {
		case o.wish.path != object.Spec.Path:
		case o.disk != nil:
			return notReady(string(disk.ProblemForeign), fmt.Sprintf("disk %s: disk %s is there in its place: mount this one elsewhere and add it with plinth disk add, or put it back", object.Spec.Path, o.disk.UUID()))
		case o.err != nil:
			return notReady(reasonOf(o.err), o.err.Error())
		}
	}
	return notReady(v1alpha1.DiskNotWanted, fmt.Sprintf("no --disk flag and no plinth disk add names %s: use the disk with: plinth disk add %s --node %s, or forget it with: plinth disk rm %s", object.Spec.Path, object.Spec.Path, object.Spec.NodeName, object.Name))
}

// orphans are the directories on a disk that no object describes.
func (k *keeper) orphans(ctx context.Context, d *disk.Disk) []v1alpha1.Orphan {
	volumes, err := d.VolumeIDs()
	snapshots, serr := d.SnapshotIDs()
	images, ierr := d.ImageUIDs()
	if err := errors.Join(err, serr, ierr); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot list what is on the disk", "disk", d.UUID())
	}
	var orphans []v1alpha1.Orphan
	for _, id := range volumes {
		_, reader := disk.ReaderOf(id)
		if _, known := k.store.Volumes.Get(id); !known && !reader {
			orphans = append(orphans, orphan(v1alpha1.OrphanVolume, id, d.Layout().Volume(id)))
		}
	}
	for _, id := range snapshots {
		if _, known := k.store.Snapshots.Get(id); !known {
			orphans = append(orphans, orphan(v1alpha1.OrphanSnapshot, id, d.Layout().Snapshot(id)))
		}
	}
	for _, uid := range images {
		if _, known := k.store.Copies.Get(v1alpha1.CopyName(uid, d.UUID())); !known {
			orphans = append(orphans, orphan(v1alpha1.OrphanImage, uid, d.Layout().Image(uid)))
		}
	}
	return orphans[:min(len(orphans), v1alpha1.MaxOrphans)]
}

func orphan(kind v1alpha1.OrphanKind, name, dir string) v1alpha1.Orphan {
	return v1alpha1.Orphan{Kind: kind, Name: name, Path: dir, UsedBytes: disk.UsedBytes(dir)}
}
