package node

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/store"
)

// register writes the objects of the node and its disks where they are missing, and what the agent knows of them.
func (a *Agent) register(ctx context.Context) error {
	node := &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: a.name}}
	if err := ensure(ctx, a.store.Nodes, node); err != nil {
		return fmt.Errorf("register node %s: %w", a.name, err)
	}
	for uuid, d := range a.disks {
		if err := a.sameDisk(d); err != nil {
			return err
		}
		object := &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: uuid}, Spec: v1alpha1.DiskSpec{Type: "reflink", NodeName: a.name, Path: d.Path()}}
		if err := ensure(ctx, a.store.Disks, object); err != nil {
			return fmt.Errorf("register disk %s: %w", d.Path(), err)
		}
		_, err := a.store.Disks.Modify(ctx, uuid, func(now *v1alpha1.Disk) { now.Spec.NodeName, now.Spec.Path = a.name, d.Path() })
		if err != nil {
			return fmt.Errorf("register disk %s: %w", d.Path(), err)
		}
	}
	return a.heartbeat(ctx)
}

// sameDisk refuses a disk at whose path another one is registered: a partition that was not mounted would else be taken
// for a new, empty disk.
func (a *Agent) sameDisk(d *disk.Disk) error {
	for _, other := range a.store.Disks.List() {
		if other.Spec.NodeName == a.name && other.Spec.Path == d.Path() && other.Name != d.UUID() {
			return backingimage.Errorf(backingimage.Precondition, "disk %s is %s, but disk %s is registered there; mount what belongs there, or, if this is a new disk, delete the old one: kubectl delete disks.plinth.dev %s",
				d.Path(), d.UUID(), other.Name, other.Name)
		}
	}
	return nil
}

// ensure creates an object unless it exists.
func ensure[T store.Object](ctx context.Context, kind *store.Kind[T], object T) error {
	if _, exists := kind.Get(object.GetName()); exists {
		return nil
	}
	_, err := kind.Create(ctx, object)
	if backingimage.Is(err, backingimage.Conflict) {
		return nil
	}
	return err
}

// heartbeats reports until ctx ends. A report that fails is logged; the next one may succeed.
func (a *Agent) heartbeats(ctx context.Context) error {
	ticker := a.options.Clock.NewTicker(a.options.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		if err := a.heartbeat(ctx); err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).Error(err, "Cannot report this node's state")
		}
	}
}

// heartbeat reports the node and what its disks are like now.
func (a *Agent) heartbeat(ctx context.Context) error {
	_, err := a.store.Nodes.ModifyStatus(ctx, a.name, func(n *v1alpha1.StorageNode) {
		n.Status.Version = a.options.Version
		n.Status.Address, n.Status.PublicKeyHash = a.options.Address, a.options.PublicKeyHash
		n.Status.LastHeartbeatTime = metav1.NewTime(a.options.Clock.Now())
		meta.SetStatusCondition(&n.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "AgentRuns", Message: "the agent runs"})
	})
	if err != nil {
		return err
	}
	for uuid, d := range a.disks {
		if _, err := a.store.Disks.ModifyStatus(ctx, uuid, func(now *v1alpha1.Disk) { a.describe(ctx, d, &now.Status) }); err != nil {
			return err
		}
	}
	return nil
}

// describe writes what a disk is like into its status.
func (a *Agent) describe(ctx context.Context, d *disk.Disk, s *v1alpha1.DiskStatus) {
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Usable", Message: "the disk can be used"}
	total, available, err := d.Capacity()
	if err == nil {
		s.CapacityBytes, s.AvailableBytes = total, available
		err = d.Healthy()
	}
	if err != nil {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, backingimage.KindOf(err).String(), err.Error()
	}
	s.Filesystem, s.Pool = d.Filesystem(), d.Pool()
	s.Orphans = a.orphans(ctx, d)
	if meta.SetStatusCondition(&s.Conditions, ready) {
		klog.FromContext(ctx).Info("Disk changed state", "disk", d.UUID(), "path", d.Path(), "ready", ready.Status, "message", ready.Message)
	}
}

// orphans are the volumes on a disk that no object describes.
func (a *Agent) orphans(ctx context.Context, d *disk.Disk) []string {
	ids, err := d.VolumeIDs()
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot list volumes", "disk", d.UUID())
		return nil
	}
	return slices.DeleteFunc(ids, func(id string) bool {
		_, known := a.store.Volumes.Get(id)
		return known
	})
}
