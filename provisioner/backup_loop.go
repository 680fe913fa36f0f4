package provisioner

import (
	"context"
	"errors"
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

// BackupLoop writes the backups that the controller gave to this node into their targets. What was sent before a restart or a failure is
// found there and not sent again.
type BackupLoop struct {
	node         string
	store        *store.Store
	engines      *Engines
	repositories *Repositories
	clock        clock.WithTicker
	loop         *reconcile.Loop
}

// maxBackups is how many backups a node writes at once.
const maxBackups = 2

// NewBackupLoop makes the loop of a node; it starts nothing.
func NewBackupLoop(node string, s *store.Store, engines *Engines, r *Repositories, c clock.WithTicker) *BackupLoop {
	l := &BackupLoop{node: node, store: s, engines: engines, repositories: r, clock: c}
	l.loop = reconcile.New("backups", l, reconcile.Options{Workers: maxBackups, BaseDelay: time.Second})
	return l
}

// Run reconciles until ctx ends.
func (l *BackupLoop) Run(ctx context.Context) error {
	if err := l.store.Synced(ctx); err != nil {
		return err
	}
	defer l.store.Backups.OnChange(func(b *v1alpha1.Backup) {
		if l.wanted(b) {
			l.loop.Enqueue(b.Name)
		}
	})()
	defer l.store.Snapshots.OnChange(func(s *v1alpha1.Snapshot) {
		if s.Spec.Type == v1alpha1.SnapshotBackup {
			l.loop.Enqueue(s.Spec.Name)
		}
	})()
	return l.loop.Run(ctx)
}

// wanted reports whether a backup is to be written here.
func (l *BackupLoop) wanted(b *v1alpha1.Backup) bool {
	return b.Status.NodeName == l.node && b.Status.DiskUUID != "" && !b.Final() && b.DeletionTimestamp == nil
}

// Reconcile writes one backup. It ends when the backup is deleted meanwhile.
func (l *BackupLoop) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	b, ok := l.store.Backups.Get(name)
	if !ok || !l.wanted(b) {
		return 0, nil
	}
	// The API server is asked, not the cache: what has failed for good must not be begun anew.
	b, err := l.store.Backups.Live(ctx, name)
	if err != nil || !l.wanted(b) {
		return 0, backingimage.IgnoreNotFound(err)
	}
	if l.waits(b) {
		return 0, nil
	}
	working, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.store.Backups.OnChange(func(now *v1alpha1.Backup) {
		if now.Name == name && (now.UID != b.UID || now.DeletionTimestamp != nil) {
			cancel()
		}
	})()
	m, err := l.write(working, b)
	if err != nil && working.Err() != nil {
		return 0, nil
	}
	return 0, l.report(ctx, b, m, err)
}

// waits reports whether the backup's snapshot is not taken yet. The controller says what became of one that failed.
func (l *BackupLoop) waits(b *v1alpha1.Backup) bool {
	if b.Spec.Volume == "" {
		return false
	}
	s, ok := l.store.Snapshots.Get(b.Status.Snapshot)
	return !ok || s.Status.State != v1alpha1.SnapshotReady
}

// write makes the backup and says meanwhile how far it is.
func (l *BackupLoop) write(ctx context.Context, b *v1alpha1.Backup) (*backup.Manifest, error) {
	repository, err := l.repositories.Make(ctx, b.Spec.Target)
	if err != nil {
		return nil, err
	}
	m, err := repository.Backup(ctx, string(b.UID))
	if !backingimage.Is(err, backingimage.NotFound) {
		return m, err // an earlier attempt got this far, or nobody knows
	}
	klog.FromContext(ctx).Info("Writing backup", "backup", b.Name, "target", b.Spec.Target)
	p := &pace{clock: l.clock}
	reporting, stop := context.WithCancel(ctx)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		p.run(reporting, func(now backup.Progress, rate, left int64) { l.progress(reporting, b, now, rate, left) })
	}()
	m, err = l.copy(ctx, b, repository, p.see)
	stop()
	<-reported
	return m, err
}

// progress writes how far a backup is; what cannot be written now is written next time.
func (l *BackupLoop) progress(ctx context.Context, b *v1alpha1.Backup, p backup.Progress, rate, left int64) {
	_, _ = l.store.Backups.ModifyStatus(ctx, b.Name, func(now *v1alpha1.Backup) {
		if now.UID != b.UID || now.Final() {
			return
		}
		s := &now.Status
		s.State = v1alpha1.BackupInProgress
		s.Progress, s.BytesTotal, s.BytesDone = percent(p), p.TotalBytes, p.DoneBytes
		s.ReadBytes, s.UploadedBytes, s.BytesPerSecond, s.ETASeconds = p.Stats.ReadBytes, p.Stats.SentBytes, rate, left
		setBackupReady(now, metav1.ConditionFalse, reasonWriting, "is being written: "+progressText(p, rate, left))
	})
}

// Reasons of a backup's Ready condition beside Kinds.
const (
	reasonAssigned = "Assigned" // waits for its agent
	reasonWriting  = "Writing"
)

func setBackupReady(b *v1alpha1.Backup, status metav1.ConditionStatus, reason, message string) {
	b.Status.ObservedGeneration = b.Generation
	meta.SetStatusCondition(&b.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ConditionReady, Status: status, Reason: reason, Message: message, ObservedGeneration: b.Generation,
	})
}

// report writes what became of an attempt. One that may pass is made again.
func (l *BackupLoop) report(ctx context.Context, b *v1alpha1.Backup, m *backup.Manifest, err error) error {
	failed := backingimage.Terminal(err)
	_, werr := l.store.Backups.ModifyStatus(ctx, b.Name, func(now *v1alpha1.Backup) {
		if now.UID != b.UID {
			return
		}
		s := &now.Status
		s.BytesPerSecond, s.ETASeconds = 0, 0
		switch {
		case err == nil:
			finished, taken := metav1.NewTime(m.Written), metav1.NewMicroTime(m.Taken)
			s.State, s.Progress, s.Bytes, s.FinishedTime, s.TakenTime = v1alpha1.BackupReady, 100, m.Bytes(), &finished, &taken
			s.ReadBytes, s.UploadedBytes, s.BytesDone = m.Stats.ReadBytes, m.Stats.SentBytes, s.BytesTotal
			setBackupReady(now, metav1.ConditionTrue, "Written", "is in the target")
		case failed:
			s.State = v1alpha1.BackupFailed
			setBackupReady(now, metav1.ConditionFalse, backingimage.KindOf(err).String(), err.Error())
		default:
			setBackupReady(now, metav1.ConditionFalse, backingimage.KindOf(err).String(), err.Error()+"; it will be tried again")
		}
	})
	if werr != nil || err == nil || failed {
		return errors.Join(backingimage.IgnoreNotFound(werr))
	}
	return err
}
