package provisioner

import (
	"cmp"
	"context"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner/backup"
)

// BackupController decides about backups: which node writes each, from which point in time, and that what is deleted is removed from its
// target. Of each volume it keeps the snapshot of the last backup, so that the next one can tell what changed.
type BackupController struct {
	store        *store.Store
	repositories *Repositories
	loop         *reconcile.Loop
}

// NewBackupController makes the loop; it starts nothing.
func NewBackupController(s *store.Store, r *Repositories) *BackupController {
	c := &BackupController{store: s, repositories: r}
	c.loop = reconcile.New("backups", c, reconcile.Options{BaseDelay: time.Second})
	return c
}

// Run reconciles until ctx ends.
func (c *BackupController) Run(ctx context.Context) error {
	if err := c.store.Synced(ctx); err != nil {
		return err
	}
	defer c.store.Backups.OnChange(func(b *v1alpha1.Backup) { c.loop.Enqueue(b.Name) })()
	defer c.store.Snapshots.OnChange(func(s *v1alpha1.Snapshot) {
		if s.Spec.Type == v1alpha1.SnapshotBackup {
			c.loop.Enqueue(s.Spec.Name)
		}
	})()
	return c.loop.Run(ctx)
}

// Reconcile brings one backup a step further.
func (c *BackupController) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	b, ok := c.store.Backups.Get(name)
	if !ok {
		return 0, nil
	}
	if b.DeletionTimestamp != nil {
		return 0, c.remove(ctx, b)
	}
	for _, step := range []func(context.Context, *v1alpha1.Backup) (*v1alpha1.Backup, error){c.finalize, c.assign, c.take, c.retire} {
		var err error
		if b, err = step(ctx, b); err != nil {
			return 0, c.report(ctx, b, err)
		}
	}
	return 0, nil
}

// finalize sees to it that the object stays until the backup is gone.
func (c *BackupController) finalize(ctx context.Context, b *v1alpha1.Backup) (*v1alpha1.Backup, error) {
	if slices.Contains(b.Finalizers, v1alpha1.BackupFinalizer) {
		return b, nil
	}
	now, err := c.store.Backups.Modify(ctx, b.Name, func(now *v1alpha1.Backup) {
		if now.DeletionTimestamp == nil && !slices.Contains(now.Finalizers, v1alpha1.BackupFinalizer) {
			now.Finalizers = append(now.Finalizers, v1alpha1.BackupFinalizer)
		}
	})
	return cmp.Or(now, b), err
}

// assign gives the backup to the node that has what is to be read.
func (c *BackupController) assign(ctx context.Context, b *v1alpha1.Backup) (*v1alpha1.Backup, error) {
	if b.Final() || b.Status.NodeName != "" {
		return b, nil
	}
	target, err := c.store.Targets.Live(ctx, b.Spec.Target)
	if err != nil {
		return b, err
	}
	find := c.ofVolume
	if b.Spec.Image != "" {
		find = c.ofImage
	}
	given, err := find(ctx, b)
	if err != nil {
		return b, err
	}
	given.URL = backup.URL(target.Spec.URL, string(b.UID), b.Spec.Volume, b.Spec.Image)
	klog.FromContext(ctx).Info("Assigned backup", "backup", b.Name, "node", given.NodeName)
	return c.store.Backups.ModifyStatus(ctx, b.Name, func(now *v1alpha1.Backup) {
		if now.Status.NodeName == "" && now.UID == b.UID {
			given.Conditions = now.Status.Conditions
			now.Status = given
			setBackupReady(now, metav1.ConditionFalse, reasonAssigned, "waits for the agent on node "+given.NodeName)
		}
	})
}

// ofVolume is the status of a backup of a volume.
func (c *BackupController) ofVolume(ctx context.Context, b *v1alpha1.Backup) (v1alpha1.BackupStatus, error) {
	v, err := c.store.Volumes.Live(ctx, b.Spec.Volume)
	switch {
	case err != nil:
		return v1alpha1.BackupStatus{}, err
	case v.DeletionTimestamp != nil:
		return v1alpha1.BackupStatus{}, backingimage.Errorf(backingimage.Precondition, "volume %s is being deleted", v.Name)
	case v.Status.State == v1alpha1.VolumeFailed:
		return v1alpha1.BackupStatus{}, failure(v)
	case v.Status.State != v1alpha1.VolumeReady:
		return v1alpha1.BackupStatus{}, backingimage.Errorf(backingimage.NotReady, "volume %s is not ready yet: %s", v.Name, v.Status.Message)
	}
	return v1alpha1.BackupStatus{
		State: v1alpha1.BackupPending, NodeName: v.Spec.NodeName, DiskUUID: v.Spec.DiskUUID, VolumeUID: string(v.UID),
		Volume: v.Spec.DeepCopy(), VolumeLabels: v.Labels, Snapshot: "backup-" + string(b.UID),
	}, nil
}

// ofImage is the status of a backup of an image.
func (c *BackupController) ofImage(ctx context.Context, b *v1alpha1.Backup) (v1alpha1.BackupStatus, error) {
	image, err := c.store.Images.Live(ctx, b.Spec.Image)
	if err != nil {
		return v1alpha1.BackupStatus{}, err
	}
	for _, copied := range c.store.Copies.By(store.ByImage, image.Name) {
		if copied.Spec.ImageUID == string(image.UID) && copied.Status.State == v1alpha1.CopyReady && copied.DeletionTimestamp == nil {
			return v1alpha1.BackupStatus{State: v1alpha1.BackupPending, NodeName: copied.Spec.NodeName, DiskUUID: copied.Spec.DiskUUID}, nil
		}
	}
	return v1alpha1.BackupStatus{}, backingimage.Errorf(backingimage.NotReady, "backing image %s has no ready copy yet: %s", image.Name, image.Status.Message)
}

// take takes the volume's point in time.
func (c *BackupController) take(ctx context.Context, b *v1alpha1.Backup) (*v1alpha1.Backup, error) {
	if b.Final() {
		return b, nil
	}
	if _, known := c.store.Nodes.Get(b.Status.NodeName); !known && b.Status.NodeName != "" {
		return b, backingimage.Errorf(backingimage.Precondition, "node %s, which was to write it, was removed; make another backup", b.Status.NodeName)
	}
	if b.Spec.Volume == "" || b.Status.Volume == nil {
		return b, nil
	}
	s, ok := c.store.Snapshots.Get(b.Status.Snapshot)
	if !ok {
		_, err := c.store.Snapshots.Create(ctx, &v1alpha1.Snapshot{
			ObjectMeta: metav1.ObjectMeta{Name: b.Status.Snapshot, Finalizers: []string{v1alpha1.SnapshotFinalizer}},
			Spec: v1alpha1.SnapshotSpec{
				Name: b.Name, Volume: b.Spec.Volume, Type: v1alpha1.SnapshotBackup, DiskUUID: b.Status.DiskUUID, NodeName: b.Status.NodeName,
				Image: b.Status.Volume.Image.DeepCopy(),
			},
		})
		if backingimage.Is(err, backingimage.Conflict) {
			err = nil // the cache is behind
		}
		return b, err
	}
	if err := snapshotFailure(s); err != nil {
		return b, backingimage.Errorf(backingimage.Precondition, "its point in time cannot be taken: %w", err)
	}
	if s.Status.CreationTime == nil || b.Status.TakenTime != nil {
		return b, nil
	}
	return c.store.Backups.ModifyStatus(ctx, b.Name, func(now *v1alpha1.Backup) {
		if now.UID == b.UID && now.Status.TakenTime == nil {
			now.Status.TakenTime, now.Status.Bytes = s.Status.CreationTime, s.Status.Bytes
		}
	})
}

// retire deletes the snapshots that no later backup will be compared with: those of backups that failed, and those of all ready ones but the
// last of each volume.
func (c *BackupController) retire(ctx context.Context, b *v1alpha1.Backup) (*v1alpha1.Backup, error) {
	if b.Status.Snapshot == "" || !b.Final() {
		return b, nil
	}
	all := c.store.Backups.List()
	if b.Status.State == v1alpha1.BackupFailed {
		return b, c.dropSnapshot(ctx, b)
	}
	for _, o := range all {
		if o.UID == b.UID || o.Status.State != v1alpha1.BackupReady || o.Status.Snapshot == "" || o.Spec.Target != b.Spec.Target || o.Status.VolumeUID != b.Status.VolumeUID {
			continue
		}
		older := o
		if b.Status.TakenTime.Before(o.Status.TakenTime) {
			older = b
		}
		if err := c.dropSnapshot(ctx, older); err != nil {
			return b, err
		}
		if older == b {
			break
		}
	}
	return b, nil
}

func (c *BackupController) dropSnapshot(ctx context.Context, b *v1alpha1.Backup) error {
	if err := c.store.Snapshots.Delete(ctx, b.Status.Snapshot); err != nil {
		return err
	}
	_, err := c.store.Backups.ModifyStatus(ctx, b.Name, func(now *v1alpha1.Backup) {
		if now.UID == b.UID {
			now.Status.Snapshot = ""
		}
	})
	return backingimage.IgnoreNotFound(err)
}

// remove removes the backup from its target, then lets the object go. Where there is no target any more, nothing is left to remove it from.
func (c *BackupController) remove(ctx context.Context, b *v1alpha1.Backup) error {
	if !slices.Contains(b.Finalizers, v1alpha1.BackupFinalizer) {
		return nil
	}
	if b.Status.Snapshot != "" {
		if err := c.store.Snapshots.Delete(ctx, b.Status.Snapshot); err != nil {
			return err
		}
	}
	if err := c.removeFrom(ctx, b); err != nil {
		_, _ = c.store.Backups.ModifyStatus(ctx, b.Name, func(now *v1alpha1.Backup) { // the error below is logged
			setBackupReady(now, metav1.ConditionFalse, backingimage.KindOf(err).String(), "is being deleted: "+err.Error()+"; to forget it without removing it there, delete the backup target")
		})
		return err
	}
	klog.FromContext(ctx).Info("Removed backup", "backup", b.Name, "target", b.Spec.Target)
	_, err := c.store.Backups.Modify(ctx, b.Name, func(now *v1alpha1.Backup) {
		now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == v1alpha1.BackupFinalizer })
	})
	return backingimage.IgnoreNotFound(err)
}

func (c *BackupController) removeFrom(ctx context.Context, b *v1alpha1.Backup) error {
	if _, err := c.store.Targets.Live(ctx, b.Spec.Target); err != nil {
		return backingimage.IgnoreNotFound(err)
	}
	if b.Status.NodeName == "" {
		return nil // nothing was written
	}
	r, err := c.repositories.Open(ctx, b.Spec.Target)
	if err != nil {
		return backingimage.IgnoreNotFound(err)
	}
	return r.Remove(ctx, string(b.UID))
}

// report says at the backup why it goes no further.
func (c *BackupController) report(ctx context.Context, b *v1alpha1.Backup, err error) error {
	failed := backingimage.Terminal(err)
	_, werr := c.store.Backups.ModifyStatus(ctx, b.Name, func(now *v1alpha1.Backup) {
		if now.UID != b.UID || now.Final() {
			return
		}
		now.Status.State = cmp.Or(now.Status.State, v1alpha1.BackupPending)
		if failed {
			now.Status.State = v1alpha1.BackupFailed
		}
		setBackupReady(now, metav1.ConditionFalse, backingimage.KindOf(err).String(), err.Error())
	})
	if werr != nil || failed {
		return backingimage.IgnoreNotFound(werr)
	}
	return err
}

// backupMessage is what a backup's Ready condition says.
func backupMessage(b *v1alpha1.Backup) string {
	if c := meta.FindStatusCondition(b.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return "nobody has looked at it yet"
}
