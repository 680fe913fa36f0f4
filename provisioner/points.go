package provisioner

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Points keeps the points in time of which volumes are made on other disks than their source volume's: one Snapshot of type clone for each
// such volume, from the moment that the volume is written until it is made. It is one of a cluster's loops.
type Points struct {
	store *store.Store
	loop  *reconcile.Loop
}

// NewPoints makes the loop; it starts nothing.
func NewPoints(s *store.Store) *Points {
	p := &Points{store: s}
	p.loop = reconcile.New("points", p, reconcile.Options{Workers: 2})
	return p
}

// Run works until ctx ends.
func (p *Points) Run(ctx context.Context) error {
	if err := p.store.Synced(ctx); err != nil {
		return err
	}
	defer p.store.Volumes.OnChange(func(v *v1alpha1.Volume) {
		if v.Spec.SourceVolume != "" && v.Spec.SourceDisk != "" {
			p.loop.Enqueue(v.Name)
		}
	})()
	defer p.store.Snapshots.OnChange(func(s *v1alpha1.Snapshot) {
		if s.Spec.Type == v1alpha1.SnapshotClone {
			p.loop.Enqueue(s.Spec.TargetVolume)
		}
	})()
	return p.loop.Run(ctx)
}

// Reconcile makes or deletes the point of one volume.
func (p *Points) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	v, exists := p.store.Volumes.Get(name)
	point, taken := p.store.Snapshots.Get(v1alpha1.ClonePoint(name))
	if !exists && taken { // the cache may be behind
		live, err := p.store.Volumes.Live(ctx, name)
		if err != nil && !backingimage.Is(err, backingimage.NotFound) {
			return 0, err
		}
		v, exists = live, err == nil
	}
	switch needed := exists && needsPoint(v); {
	case needed && !taken:
		return 0, p.make(ctx, v)
	case !needed && taken && point.DeletionTimestamp == nil:
		klog.FromContext(ctx).V(2).Info("Letting a volume's point in time go", "volume", name)
		return 0, p.store.Snapshots.Delete(ctx, point.Name)
	}
	return 0, nil
}

// needsPoint reports whether a volume is still to be made of a volume on another disk.
func needsPoint(v *v1alpha1.Volume) bool {
	return v.Spec.SourceVolume != "" && v.Spec.SourceDisk != "" && v.BeingMade()
}

// make has the point taken. Where the source volume is gone, the agent of the volume to be made finds that out, too, and says so.
func (p *Points) make(ctx context.Context, v *v1alpha1.Volume) error {
	source, err := p.store.Volumes.Live(ctx, v.Spec.SourceVolume)
	if err != nil || source.DeletionTimestamp != nil {
		return backingimage.IgnoreNotFound(err)
	}
	name := v1alpha1.ClonePoint(v.Name)
	_, err = p.store.Snapshots.Create(ctx, &v1alpha1.Snapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{v1alpha1.SnapshotFinalizer}},
		Spec: v1alpha1.SnapshotSpec{
			Name: name, Volume: source.Name, Type: v1alpha1.SnapshotClone, TargetVolume: v.Name,
			DiskUUID: source.Spec.DiskUUID, NodeName: source.Spec.NodeName, Image: source.Spec.Image.DeepCopy(),
		},
	})
	if backingimage.Is(err, backingimage.Conflict) { // the cache was behind
		return nil
	}
	return err
}
