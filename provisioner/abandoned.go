package provisioner

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Abandoned is the loop for volumes whose disk and agent are both gone from the cluster, so that nobody else says or does anything about
// them. It says so at the volume, whose data may still be on a machine that somebody can bring back; and lets a volume go that is
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
	defer a.store.Disks.OnChange(func(d *v1alpha1.Disk) {
		if _, exists := a.store.Disks.Get(d.Name); !exists {
			a.wake(func(v *v1alpha1.Volume) bool { return v.Spec.DiskUUID == d.Name })
		}
	})()
	defer a.store.Nodes.OnChange(func(n *v1alpha1.StorageNode) {
		if _, exists := a.store.Nodes.Get(n.Name); !exists {
			a.wake(func(v *v1alpha1.Volume) bool { return v.Spec.NodeName == n.Name })
		}
	})()
	return a.loop.Run(ctx)
}

func (a *Abandoned) wake(which func(*v1alpha1.Volume) bool) {
	for _, v := range a.store.Volumes.List() {
		if which(v) {
			a.loop.Enqueue(v.Name)
		}
	}
}

// Reconcile looks at one volume.
func (a *Abandoned) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	v, ok := a.store.Volumes.Get(name)
	if !ok || v.Spec.NodeName == "" {
		return 0, nil
	}
	is, err := a.is(ctx, v)
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

// is reports whether a volume's disk is not registered, and its node is not or is silent: while an agent is heard, the volume
// is its affair. The API server is asked before that is said.
func (a *Abandoned) is(ctx context.Context, v *v1alpha1.Volume) (bool, error) {
	if _, registered := a.store.Disks.Get(v.Spec.DiskUUID); registered {
		return false, nil
	}
	if n, registered := a.store.Nodes.Get(v.Spec.NodeName); registered && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady) {
		return false, nil
	}
	_, err := a.store.Disks.Live(ctx, v.Spec.DiskUUID)
	if !backingimage.Is(err, backingimage.NotFound) {
		return false, err
	}
	n, err := a.store.Nodes.Live(ctx, v.Spec.NodeName)
	if backingimage.Is(err, backingimage.NotFound) {
		return true, nil
	}
	return err == nil && !meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady), err
}
