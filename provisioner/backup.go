package provisioner

import (
	"context"
	"errors"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// backups keeps snapshots of TypeBackup: Backup objects, which the controller and the agent of the volume's disk bring about.
type backups struct{ *Provisioner }

func (p backups) create(ctx context.Context, r SnapshotRequest, v *v1alpha1.Volume, parameters SnapshotParameters) (Snapshot, error) {
	target, err := p.target(ctx, parameters.BackupTarget)
	if err != nil {
		return Snapshot{}, err
	}
	b, err := p.store.Backups.Create(ctx, &v1alpha1.Backup{
		ObjectMeta: metav1.ObjectMeta{Name: SnapshotID(r.Name), Labels: v.Labels, Finalizers: []string{v1alpha1.BackupFinalizer}},
		Spec:       v1alpha1.BackupSpec{Target: target, Volume: v.Name},
	})
	if err != nil {
		return Snapshot{}, err
	}
	if b, err = p.pointTaken(ctx, b); b.Status.State == v1alpha1.BackupFailed { // nothing was made, and the next call begins anew
		err = errors.Join(err, p.store.Backups.Delete(ctx, b.Name))
	}
	return snapshotOfBackup(b), err
}

// target is the name of the target that a class names, or the only one that there is.
func (p backups) target(ctx context.Context, named string) (string, error) {
	if named != "" {
		_, err := p.store.Targets.Live(ctx, named)
		return named, err
	}
	all, err := p.store.Targets.LiveList(ctx)
	switch {
	case err != nil:
		return "", err
	case len(all) == 0:
		return "", backingimage.Errorf(backingimage.Precondition, "there is no backup target; make one with: plinth target add NAME --url URL")
	case len(all) > 1:
		return "", backingimage.Errorf(backingimage.Invalid, "%s: there are %d backup targets; name the one that is meant", keyBackupTarget, len(all))
	}
	return all[0].Name, nil
}

// pointTaken waits until a backup's point in time is taken and returns the latest of it, also beside an error.
func (p backups) pointTaken(ctx context.Context, b *v1alpha1.Backup) (*v1alpha1.Backup, error) {
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err := p.store.Backups.Wait(ctx, b.Name, func(now *v1alpha1.Backup) (bool, error) {
		if now == nil || now.UID != b.UID {
			return false, nil
		}
		b = now
		return now.Status.TakenTime != nil, backupFailure(now)
	})
	return b, waited(err, "backup %s of volume %s: its point in time is not taken yet: %s", b.Name, b.Spec.Volume, backupMessage(b))
}

// backupFailure is the error that a failed backup stands for, nil for any other.
func backupFailure(b *v1alpha1.Backup) error {
	if b.Status.State != v1alpha1.BackupFailed {
		return nil
	}
	return backingimage.Errorf(backingimage.Precondition, "backup %s failed: %s", b.Name, backupMessage(b))
}

// snapshotOfBackup is a Backup object as orchestrators know it.
func snapshotOfBackup(b *v1alpha1.Backup) Snapshot {
	known := Snapshot{
		Handle: Handle{Type: TypeBackup, Volume: b.Spec.Volume, Name: b.Name}.String(), Type: TypeBackup, Volume: b.Spec.Volume,
		Bytes: b.Status.Bytes, Created: b.CreationTimestamp.Time, Taken: b.Status.TakenTime != nil,
		Ready: b.Status.State == v1alpha1.BackupReady && b.DeletionTimestamp == nil, Failed: backupFailure(b),
	}
	if b.Status.TakenTime != nil {
		known.Created = b.Status.TakenTime.Time
	}
	if !known.Ready {
		known.Message = backupMessage(b)
	}
	return known
}

func (p backups) named(ctx context.Context, name string) (Snapshot, error) {
	b, err := p.store.Backups.Live(ctx, SnapshotID(name))
	if err == nil && b.Spec.Volume == "" {
		err = backingimage.Errorf(backingimage.NotFound, "backup %s is not of a volume", b.Name)
	}
	if err != nil {
		return Snapshot{}, err
	}
	return snapshotOfBackup(b), nil
}

func (p backups) get(ctx context.Context, h Handle) (Snapshot, error) {
	b, err := p.store.Backups.Live(ctx, h.Name)
	if err == nil && b.Spec.Volume == h.Volume {
		return snapshotOfBackup(b), nil
	}
	if err != nil && !backingimage.Is(err, backingimage.NotFound) {
		return Snapshot{}, err
	}
	found, err := p.find(ctx, h) // made elsewhere, or by a cluster that is gone
	if err != nil {
		return Snapshot{}, err
	}
	return Snapshot{
		Handle: h.String(), Type: TypeBackup, Volume: h.Volume, Bytes: found.manifest.Bytes(), Created: found.manifest.Taken, Taken: true, Ready: true,
	}, nil
}

func (p backups) list(ctx context.Context) ([]Snapshot, error) {
	all, err := p.store.Backups.LiveList(ctx)
	var list []Snapshot
	for _, b := range all {
		if b.Spec.Volume != "" {
			list = append(list, snapshotOfBackup(b))
		}
	}
	return list, err
}

// delete removes the Backup object, and with it the backup, and returns when it is gone. What was made elsewhere is left to whoever made it.
func (p backups) delete(ctx context.Context, h Handle) error {
	b, err := p.store.Backups.Live(ctx, h.Name)
	if err != nil || b.Spec.Volume != h.Volume {
		return backingimage.IgnoreNotFound(err)
	}
	users, err := p.restoringFrom(ctx, string(b.UID))
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return backingimage.Errorf(backingimage.InUse, "backup %s is being restored to volumes: %s; wait until they are ready, or delete them first", b.Name, strings.Join(users, ", "))
	}
	if err := p.store.Backups.Delete(ctx, b.Name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err = p.store.Backups.Wait(ctx, b.Name, func(now *v1alpha1.Backup) (bool, error) {
		if now == nil || now.UID != b.UID {
			return true, nil
		}
		b = now
		return false, nil
	})
	return waited(err, "backup %s is not removed from target %s yet: %s", b.Name, b.Spec.Target, backupMessage(b))
}

// restoringFrom are the volumes that still need a backup to be made, those included that the cache does not know yet.
func (p backups) restoringFrom(ctx context.Context, id string) (users []string, err error) {
	all, err := p.store.Volumes.LiveList(ctx)
	for _, v := range all {
		if r := v.Spec.Restore; r != nil && r.Backup == id && v.BeingMade() {
			users = append(users, v.Name)
		}
	}
	return users, err
}

// source makes a draft start from a backup.
func (p backups) source(ctx context.Context, d *draft, h Handle) error {
	b, err := p.store.Backups.Live(ctx, h.Name)
	if err == nil && b.Spec.Volume == h.Volume && b.Status.State != v1alpha1.BackupReady {
		if err := backupFailure(b); err != nil {
			return err
		}
		return backingimage.Errorf(backingimage.NotReady, "backup %s is not complete yet: %s", b.Name, backupMessage(b))
	}
	if err != nil && !backingimage.Is(err, backingimage.NotFound) {
		return err
	}
	d.restore, err = p.find(ctx, h)
	return err
}
