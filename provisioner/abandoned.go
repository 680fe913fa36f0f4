package provisioner

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Abandoned is the loop for volumes and snapshots whose disk and agent are both gone from the cluster, so that nobody else says or does anything about
// them. It says so at the volume, whose data may still be on a machine that somebody can bring back; and lets a volume or snapshot go that is
// being deleted. Whatever is left of that on the disk is an orphan when it returns, and is reported and not removed.
type Abandoned struct {
	store *store.Store
	loop  *reconcile.Loop
}

// NewAbandoned makes the loop; it starts nothing.
func NewAbandoned(s *store.Store) *Abandoned {
	a := &Abandoned{store: s}
	a.loop = reconcile.New("abandoned", a, reconcile.Options{})
	return a
}

// Run looks on until ctx ends.
func (a *Abandoned) Run(ctx context.Context) error {
	if err := a.store.Synced(ctx); err != nil {
		return err
	}
	defer a.store.Volumes.OnChange(func(v *v1alpha1.Volume) { a.loop.Enqueue(v.Name) })()
	defer a.store.Snapshots.OnChange(func(s *v1alpha1.Snapshot) { a.loop.Enqueue(snapshotPrefix + s.Name) })()
	defer a.store.Disks.OnChange(func(d *v1alpha1.Disk) {
		if _, exists := a.store.Disks.Get(d.Name); !exists {
			a.wake(func(disk, _ string) bool { return disk == d.Name })
		}
	})()
	defer a.store.Nodes.OnChange(func(n *v1alpha1.StorageNode) {
		if _, exists := a.store.Nodes.Get(n.Name); !exists {
			a.wake(func(_, node string) bool { return node == n.Name })
		}
	})()
	return a.loop.Run(ctx)
}

// snapshotPrefix begins the names of snapshots in the queue, which no volume's name does.
const snapshotPrefix = "snapshot/"

func (a *Abandoned) wake(which func(disk, node string) bool) {
	for _, v := range a.store.Volumes.List() {
		if which(v.Spec.DiskUUID, v.Spec.NodeName) {
			a.loop.Enqueue(v.Name)
		}
	}
	for _, s := range a.store.Snapshots.List() {
		if which(s.Spec.DiskUUID, s.Spec.NodeName) {
			a.loop.Enqueue(snapshotPrefix + s.Name)
		}
	}
}

// letGo lets a snapshot go that is being deleted, where nobody else does.
func (a *Abandoned) letGo(ctx context.Context, name string) error {
	s, ok := a.store.Snapshots.Get(name)
	if !ok || s.DeletionTimestamp == nil || s.Spec.NodeName == "" {
		return nil
	}
	if is, err := a.is(ctx, s.Spec.DiskUUID, s.Spec.NodeName); err != nil || !is {
		return err
	}
	klog.FromContext(ctx).Info("Letting go of a snapshot whose disk and node are gone", "snapshot", name, "disk", s.Spec.DiskUUID, "node", s.Spec.NodeName)
	_, err := a.store.Snapshots.Modify(ctx, name, func(now *v1alpha1.Snapshot) {
		now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == v1alpha1.SnapshotFinalizer })
	})
	return backingimage.IgnoreNotFound(err)
}

// Reconcile looks at one volume or snapshot.
func (a *Abandoned) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	if snapshot, is := strings.CutPrefix(name, snapshotPrefix); is {
		return 0, a.letGo(ctx, snapshot)
	}
	v, ok := a.store.Volumes.Get(name)
	if !ok || v.Spec.NodeName == "" {
		return 0, nil
	}
	is, err := a.is(ctx, v.Spec.DiskUUID, v.Spec.NodeName)
	if err != nil || !is {
		return 0, err
	}
	if v.DeletionTimestamp != nil {
		klog.FromContext(ctx).Info("Letting go of a volume whose disk and node are gone", "volume", name, "disk", v.Spec.DiskUUID, "node", v.Spec.NodeName)
		_, err = a.store.Volumes.Modify(ctx, name, func(now *v1alpha1.Volume) {
			now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == v1alpha1.VolumeFinalizer })
		})
		return 0, backingimage.IgnoreNotFound(err)
	}
	_, err = a.store.Volumes.ModifyStatus(ctx, name, func(now *v1alpha1.Volume) {
		now.Status.Reason, now.Status.Message = v1alpha1.VolumeAbandoned, fmt.Sprintf("disk %s and node %s, where its data is, are gone from the cluster: "+
			"bring the machine back, under its name; or delete the volume, whose data is then given up", v.Spec.DiskUUID, v.Spec.NodeName)
	})
	return 0, backingimage.IgnoreNotFound(err)
}

// is reports whether a disk is not registered, and its node is not or is silent: while an agent is heard, what is there
// is its affair. The API server is asked before that is said.
func (a *Abandoned) is(ctx context.Context, disk, node string) (bool, error) {
	if _, registered := a.store.Disks.Get(disk); registered {
		return false, nil
	}
	if n, registered := a.store.Nodes.Get(node); registered && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady) {
		return false, nil
	}
	_, err := a.store.Disks.Live(ctx, disk)
	if !backingimage.Is(err, backingimage.NotFound) {
		return false, err
	}
	n, err := a.store.Nodes.Live(ctx, node)
	if backingimage.Is(err, backingimage.NotFound) {
		return true, nil
	}
	return err == nil && !meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady), err
}
