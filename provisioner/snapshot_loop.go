package provisioner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner/engine"
)

// SnapshotLoop takes on a node's disks the snapshots that the Snapshot objects describe, adopts those that are there, deletes, and
// reports what it found. It never deletes a snapshot that has no object.
type SnapshotLoop struct {
	store   *store.Store
	engines *Engines
	loop    *reconcile.Loop
}

// NewSnapshotLoop makes the loop; it starts nothing.
func NewSnapshotLoop(s *store.Store, engines *Engines) *SnapshotLoop {
	l := &SnapshotLoop{store: s, engines: engines}
	l.loop = reconcile.New("snapshots", l, reconcile.Options{})
	return l
}

// Run reconciles until ctx ends. Every snapshot of the node is looked at once at the start.
func (l *SnapshotLoop) Run(ctx context.Context) error {
	if err := l.store.Synced(ctx); err != nil {
		return err
	}
	defer l.store.Snapshots.OnChange(func(s *v1alpha1.Snapshot) { l.loop.Enqueue(s.Name) })()
	defer l.engines.disks.OnChange(l.wakeDisk)()
	return l.loop.Run(ctx)
}

// wakeDisk enqueues the snapshots of a disk.
func (l *SnapshotLoop) wakeDisk(uuid string) {
	for _, s := range l.store.Snapshots.By(store.ByDisk, uuid) {
		l.loop.Enqueue(s.Name)
	}
}

// Reconcile brings one snapshot about.
func (l *SnapshotLoop) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	s, ok := l.store.Snapshots.Get(name)
	if !ok {
		return 0, nil
	}
	e, mine := l.engines.of(s.Spec.DiskUUID)
	if !mine {
		return 0, nil
	}
	if err := l.engines.usable(s.Spec.DiskUUID); err != nil {
		return 0, l.report(ctx, s, engine.SnapshotInfo{}, backingimage.Errorf(backingimage.NotReady, "%w", err))
	}
	if s.DeletionTimestamp != nil {
		return 0, l.remove(ctx, e, s)
	}
	info, err := e.StatSnapshot(ctx, name)
	if backingimage.Is(err, backingimage.NotFound) {
		// The API server is asked, not the cache: a snapshot that was taken must not be taken anew.
		if s, err = l.store.Snapshots.Live(ctx, name); err != nil || s.DeletionTimestamp != nil || s.Status.State == v1alpha1.SnapshotFailed {
			return 0, backingimage.IgnoreNotFound(err)
		}
		if err = l.take(ctx, e, s); err == nil {
			info, err = e.StatSnapshot(ctx, name)
		}
	}
	return 0, l.report(ctx, s, info, err)
}

// take takes the snapshot unless it was taken before, and is gone.
func (l *SnapshotLoop) take(ctx context.Context, e engine.Engine, s *v1alpha1.Snapshot) error {
	if s.Status.State == v1alpha1.SnapshotReady {
		if err := l.engines.healthy(s.Spec.DiskUUID); err != nil {
			return err
		}
		return backingimage.Errorf(backingimage.Corrupt, "its file is gone from disk %s; put the disk's data back, or delete the snapshot", s.Spec.DiskUUID)
	}
	klog.FromContext(ctx).Info("Taking snapshot", "snapshot", s.Name, "volume", s.Spec.Volume)
	return e.Snapshot(ctx, engine.Snapshot{ID: s.Name, Volume: s.Spec.Volume, Name: s.Spec.Name})
}

// remove deletes the snapshot's file, then lets the object go.
func (l *SnapshotLoop) remove(ctx context.Context, e engine.Engine, s *v1alpha1.Snapshot) error {
	if !slices.Contains(s.Finalizers, v1alpha1.SnapshotFinalizer) {
		return nil
	}
	if err := e.DeleteSnapshot(ctx, s.Name); err != nil {
		_ = l.report(ctx, s, engine.SnapshotInfo{}, backingimage.Errorf(backingimage.NotReady, "is being deleted: %w", err)) // the error below is logged
		return fmt.Errorf("delete snapshot's file: %w", err)
	}
	klog.FromContext(ctx).Info("Deleted snapshot", "snapshot", s.Name)
	_, err := l.store.Snapshots.Modify(ctx, s.Name, func(now *v1alpha1.Snapshot) {
		now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == v1alpha1.SnapshotFinalizer })
	})
	return backingimage.IgnoreNotFound(err)
}

// report writes what is found now, or what went wrong. A snapshot for which there is no room fails: who asked for it is told so, and
// may ask again.
func (l *SnapshotLoop) report(ctx context.Context, s *v1alpha1.Snapshot, info engine.SnapshotInfo, err error) error {
	failed := backingimage.Terminal(err) || backingimage.Is(err, backingimage.Full)
	_, werr := l.store.Snapshots.ModifyStatus(ctx, s.Name, func(now *v1alpha1.Snapshot) {
		ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Taken", ObservedGeneration: s.Generation}
		if err != nil {
			ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, backingimage.KindOf(err).String(), err.Error()
		}
		status := &now.Status
		status.ObservedGeneration = s.Generation
		meta.SetStatusCondition(&status.Conditions, ready)
		switch {
		case err == nil:
			created := metav1.NewMicroTime(info.Created)
			status.State, status.Bytes, status.RealBytes, status.CreationTime = v1alpha1.SnapshotReady, info.Bytes, info.UsedBytes, &created
		case failed:
			status.State = v1alpha1.SnapshotFailed
		default:
			status.State = cmp.Or(status.State, v1alpha1.SnapshotPending)
		}
	})
	if werr != nil || err == nil || failed {
		return backingimage.IgnoreNotFound(werr)
	}
	return err
}
