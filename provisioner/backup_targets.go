package provisioner

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner/backup"
)

// BackupTargets says which backup targets can be read and written, and collects the garbage in them.
type BackupTargets struct {
	store        *store.Store
	repositories *Repositories
	clock        clock.PassiveClock
	loop         *reconcile.Loop
}

// Times between two looks at a target, when it was well and when it was not, and between two collections.
const (
	targetInterval  = 5 * time.Minute
	troubleInterval = 30 * time.Second
	collectInterval = 6 * time.Hour
	checkTimeout    = 40 * time.Second // of one look, so that what does not answer is soon told
)

// NewBackupTargets makes the loop; it starts nothing.
func NewBackupTargets(s *store.Store, r *Repositories, c clock.PassiveClock) *BackupTargets {
	t := &BackupTargets{store: s, repositories: r, clock: c}
	t.loop = reconcile.New("backup targets", t, reconcile.Options{})
	return t
}

// Run reconciles until ctx ends.
func (t *BackupTargets) Run(ctx context.Context) error {
	if err := t.store.Synced(ctx); err != nil {
		return err
	}
	defer t.store.Targets.OnChange(func(target *v1alpha1.BackupTarget) {
		if target.Generation != target.Status.ObservedGeneration {
			t.loop.Enqueue(target.Name)
		}
	})()
	for _, target := range t.store.Targets.List() {
		t.loop.Enqueue(target.Name)
	}
	return t.loop.Run(ctx)
}

// Reconcile looks at one target, and collects its garbage when that is due.
func (t *BackupTargets) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	target, ok := t.store.Targets.Get(name)
	if !ok || target.DeletionTimestamp != nil {
		return 0, nil
	}
	r, err := t.check(ctx, name)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	again := targetInterval
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Usable", Message: "can be read and written", ObservedGeneration: target.Generation}
	if err != nil {
		again = troubleInterval
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, backingimage.KindOf(err).String(), err.Error()
	}
	now := metav1.NewTime(t.clock.Now())
	target, err = t.store.Targets.ModifyStatus(ctx, name, func(b *v1alpha1.BackupTarget) {
		b.Status.ObservedGeneration, b.Status.CheckedTime = target.Generation, &now
		meta.SetStatusCondition(&b.Status.Conditions, ready)
		if r != nil {
			b.Status.Encrypted = r.Encrypted()
		}
	})
	if err != nil || ready.Status != metav1.ConditionTrue {
		return again, backingimage.IgnoreNotFound(err)
	}
	return again, t.collect(ctx, target, r)
}

// check is nil when the target can be read and written.
func (t *BackupTargets) check(ctx context.Context, name string) (*backup.Repository, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	r, err := t.repositories.Make(ctx, name)
	if err != nil {
		return nil, err
	}
	return r, r.Probe(ctx)
}

// collect collects the target's garbage when that is due.
func (t *BackupTargets) collect(ctx context.Context, target *v1alpha1.BackupTarget, r *backup.Repository) error {
	last, now := target.Status.CollectedTime, metav1.NewTime(t.clock.Now())
	if wanted := target.Spec.CollectGarbage; wanted != nil && !*wanted || last != nil && now.Sub(last.Time) < collectInterval {
		return nil
	}
	did, err := r.Collect(ctx)
	if err != nil {
		return err
	}
	if did.Condemned+did.Deleted > 0 {
		klog.FromContext(ctx).Info("Collected garbage of backups", "target", target.Name, "condemned", did.Condemned, "deleted", did.Deleted, "deletedBytes", did.DeletedBytes)
	}
	_, err = t.store.Targets.ModifyStatus(ctx, target.Name, func(b *v1alpha1.BackupTarget) { b.Status.CollectedTime = &now })
	return backingimage.IgnoreNotFound(err)
}
