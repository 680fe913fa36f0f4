package provisioner

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/store"
)

// BackupTeller tells at backups that they have begun, what they took, and what is in their way; and at backup targets and policies when they
// stop, and begin, to be fit for use.
type BackupTeller struct {
	store   *store.Store
	changes *event.Changes
}

// NewBackupTeller makes the loop; it starts nothing. Without a recorder it tells the log.
func NewBackupTeller(s *store.Store, r event.Recorder) *BackupTeller {
	if r == nil {
		r = event.Log{}
	}
	return &BackupTeller{store: s, changes: event.NewChanges(r)}
}

// Run tells until ctx ends.
func (t *BackupTeller) Run(ctx context.Context) error {
	if err := t.store.Synced(ctx); err != nil {
		return err
	}
	defer t.store.Backups.OnChange(func(b *v1alpha1.Backup) {
		_, exists := t.store.Backups.Get(b.Name)
		t.changes.Note(ctx, event.Ours("Backup", b.Name, b.UID), exists, backupFacts(b))
	})()
	defer t.store.Targets.OnChange(func(b *v1alpha1.BackupTarget) {
		_, exists := t.store.Targets.Get(b.Name)
		t.changes.Note(ctx, event.Ours("BackupTarget", b.Name, b.UID), exists, event.Condition(b.Status.Conditions, v1alpha1.ConditionReady, "backup target "+b.Name, metav1.ConditionTrue))
	})()
	defer t.store.Policies.OnChange(func(p *v1alpha1.BackupPolicy) {
		_, exists := t.store.Policies.Get(p.Name)
		t.changes.Note(ctx, event.Ours("BackupPolicy", p.Name, p.UID), exists, event.Condition(p.Status.Conditions, v1alpha1.ConditionReady, "backup policy "+p.Name, metav1.ConditionTrue))
	})()
	<-ctx.Done()
	return nil
}

// Reasons of events at backups.
const (
	reasonBackupStarted     = "Started"
	reasonBackupCompleted   = "Completed"
	reasonBackupFailed      = "Failed"      // for good
	reasonBackupInterrupted = "Interrupted" // and is tried again
)

// backupFacts are who writes a backup, its state, and what is in its way.
func backupFacts(b *v1alpha1.Backup) []event.Fact {
	s, what := b.Status, "backup of volume "+b.Spec.Volume
	if b.Spec.Image != "" {
		what = "backup of image " + b.Spec.Image
	}
	writer, state := event.Fact{Aspect: "writer", Value: s.NodeName}, event.Fact{Aspect: "state", Value: string(s.State)}
	if s.NodeName != "" && !b.Final() {
		writer.Reason, writer.Message = reasonBackupStarted, fmt.Sprintf("the %s to target %s has begun on node %s", what, b.Spec.Target, s.NodeName)
	}
	switch s.State {
	case v1alpha1.BackupReady:
		state.Reason, state.Message = reasonBackupCompleted, fmt.Sprintf("the %s is in target %s: %s, of which %s were read and %s uploaded",
			what, b.Spec.Target, backingimage.SizeText(s.Bytes), backingimage.SizeText(s.ReadBytes), backingimage.SizeText(s.UploadedBytes))
	case v1alpha1.BackupFailed:
		state.Reason, state.Warning, state.Message = reasonBackupFailed, true, event.Because(fmt.Sprintf("the %s to target %s failed", what, b.Spec.Target), backupMessage(b))
	}
	return []event.Fact{writer, state, backupTrouble(b, what)}
}

// backupTrouble is what is in the way of a backup that is not written yet, or not removed yet.
func backupTrouble(b *v1alpha1.Backup, what string) event.Fact {
	trouble := event.Fact{Aspect: "trouble"}
	c := meta.FindStatusCondition(b.Status.Conditions, v1alpha1.ConditionReady)
	if c == nil || c.Status == metav1.ConditionTrue || c.Reason == reasonAssigned || c.Reason == reasonWriting || b.Final() && b.DeletionTimestamp == nil {
		return trouble
	}
	trouble.Value, trouble.Warning, trouble.Reason = c.Reason, true, reasonBackupInterrupted
	trouble.Message = fmt.Sprintf("the %s in target %s: %s", what, b.Spec.Target, c.Message)
	return trouble
}
