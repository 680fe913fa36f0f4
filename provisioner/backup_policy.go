package provisioner

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // for CRON_TZ=, where the machine has none

	"github.com/robfig/cron/v3"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// BackupPolicies makes the backups that policies ask for, and removes those that they keep no longer.
type BackupPolicies struct {
	store *store.Store
	clock clock.PassiveClock
	loop  *reconcile.Loop
}

// NewBackupPolicies makes the loop; it starts nothing.
func NewBackupPolicies(s *store.Store, c clock.PassiveClock) *BackupPolicies {
	p := &BackupPolicies{store: s, clock: c}
	p.loop = reconcile.New("backup policies", p, reconcile.Options{})
	return p
}

// Run reconciles until ctx ends.
func (p *BackupPolicies) Run(ctx context.Context) error {
	if err := p.store.Synced(ctx); err != nil {
		return err
	}
	defer p.store.Policies.OnChange(func(policy *v1alpha1.BackupPolicy) { p.loop.Enqueue(policy.Name) })()
	defer p.store.Backups.OnChange(func(b *v1alpha1.Backup) {
		if b.Spec.Policy != "" && b.Final() {
			p.loop.Enqueue(b.Spec.Policy)
		}
	})()
	return p.loop.Run(ctx)
}

// Reconcile makes the backups that are due, removes those that are kept no longer, and comes back when the next are due.
func (p *BackupPolicies) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	policy, ok := p.store.Policies.Get(name)
	if !ok || policy.DeletionTimestamp != nil {
		return 0, nil
	}
	schedule, err := ParseSchedule("spec.schedule", policy.Spec.Schedule)
	if err != nil {
		return 0, p.report(ctx, policy, policy.Status.LastTime, nil, err)
	}
	now := p.clock.Now().UTC()
	last := policy.Status.LastTime
	if due := lastDue(schedule, cmp.Or(last, &policy.CreationTimestamp).UTC(), now); !due.IsZero() {
		if err := p.make(ctx, policy, due); err != nil {
			if backingimage.Is(err, backingimage.Invalid) {
				return 0, p.report(ctx, policy, last, nil, err)
			}
			return 0, err
		}
		at := metav1.NewTime(due)
		last = &at
	}
	if err := p.prune(ctx, policy); err != nil {
		return 0, err
	}
	next := schedule.Next(now)
	if next.IsZero() { // a day that never comes
		return 0, p.report(ctx, policy, last, nil, backingimage.Errorf(backingimage.Invalid, "spec.schedule: %q names no time that will come", policy.Spec.Schedule))
	}
	return max(next.Sub(now), time.Second), p.report(ctx, policy, last, &next, nil)
}

// ParseSchedule reads a schedule. Invalid.
func ParseSchedule(field, text string) (cron.Schedule, error) {
	if strings.Contains(text, "TZ=") && !strings.Contains(text, " ") {
		text += " " // without which the parser panics
	}
	schedule, err := cron.ParseStandard(text)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "%s: %q is no schedule (%v); write cron's five fields, like \"0 2 * * *\" for two o'clock each night", field, text, err)
	}
	return schedule, nil
}

// lastDue is the last time after another that a schedule names and that has come; zero for none. Of times that were missed only the last
// counts.
func lastDue(s cron.Schedule, after, now time.Time) time.Time {
	var due time.Time
	for n := 0; n < maxMissed; n++ {
		next := s.Next(after)
		if next.IsZero() || next.After(now) {
			break
		}
		due, after = next, next
	}
	return due
}

// maxMissed bounds how many times that were missed are gone through: those of a week, each minute.
const maxMissed = 7 * 24 * 60

// make makes a backup of each volume, under a name that follows from the time, so that none is made twice.
func (p *BackupPolicies) make(ctx context.Context, policy *v1alpha1.BackupPolicy, due time.Time) error {
	if policy.Spec.Suspend {
		return nil
	}
	volumes, err := p.volumes(policy)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		b := &v1alpha1.Backup{
			ObjectMeta: metav1.ObjectMeta{Name: policyBackupName(policy.Name, v, due), Finalizers: []string{v1alpha1.BackupFinalizer}},
			Spec:       v1alpha1.BackupSpec{Target: policy.Spec.Target, Volume: v, Policy: policy.Name},
		}
		if _, err := p.store.Backups.Create(ctx, b); err != nil && !backingimage.Is(err, backingimage.Conflict) {
			return err
		}
		klog.FromContext(ctx).Info("Made scheduled backup", "policy", policy.Name, "backup", b.Name, "volume", v)
	}
	return nil
}

// policyBackupName is policy-volume-time, or with a digest of the first two where that is too long.
func policyBackupName(policy, volume string, due time.Time) string {
	name := policy + "-" + volume
	if len(name) > 200 {
		sum := sha256.Sum256([]byte(name))
		name = hex.EncodeToString(sum[:])
	}
	return name + "-" + due.Format("20060102-150405")
}

// volumes are the names of those that a policy backs up now.
func (p *BackupPolicies) volumes(policy *v1alpha1.BackupPolicy) ([]string, error) {
	if policy.Spec.VolumeSelector == nil {
		return policy.Spec.Volumes, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(policy.Spec.VolumeSelector)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "spec.volumeSelector: %w", err)
	}
	var names []string
	for _, v := range p.store.Volumes.List() {
		if v.DeletionTimestamp == nil && selector.Matches(labels.Set(v.Labels)) {
			names = append(names, v.Name)
		}
	}
	return names, nil
}

// prune deletes the policy's backups that it keeps no longer.
func (p *BackupPolicies) prune(ctx context.Context, policy *v1alpha1.BackupPolicy) error {
	byVolume := map[string][]*v1alpha1.Backup{}
	for _, b := range p.store.Backups.List() {
		if b.Spec.Policy == policy.Name && b.DeletionTimestamp == nil {
			byVolume[b.Spec.Volume] = append(byVolume[b.Spec.Volume], b)
		}
	}
	for _, all := range byVolume {
		for _, b := range expired(policy.Spec, all) {
			klog.FromContext(ctx).Info("Deleting a backup that its policy keeps no longer", "policy", policy.Name, "backup", b.Name)
			if err := p.store.Backups.Delete(ctx, b.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// expired are the backups of one volume that a policy keeps no longer: complete ones that are neither among the last, nor the last of one of
// the last days or weeks that have any; and failed ones that are older than the last complete one. Without anything to keep, all stay.
func expired(policy v1alpha1.BackupPolicySpec, all []*v1alpha1.Backup) []*v1alpha1.Backup {
	if policy.KeepLast+policy.KeepDaily+policy.KeepWeekly == 0 {
		return nil
	}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *v1alpha1.Backup) int { return takenTime(b).Compare(takenTime(a)) }) // newest first
	days, weeks := newPeriods(policy.KeepDaily, "2006-01-02"), newPeriods(policy.KeepWeekly, "")
	var gone []*v1alpha1.Backup
	complete := int32(0)
	for _, b := range all {
		switch b.Status.State {
		case v1alpha1.BackupReady:
			complete++
			day, week := days.keeps(takenTime(b)), weeks.keeps(takenTime(b))
			if complete > policy.KeepLast && !day && !week {
				gone = append(gone, b)
			}
		case v1alpha1.BackupFailed:
			if complete > 0 {
				gone = append(gone, b)
			}
		}
	}
	return gone
}

// takenTime is the moment of a backup's content, or of the wish for it while there is none.
func takenTime(b *v1alpha1.Backup) time.Time {
	if b.Status.TakenTime != nil {
		return b.Status.TakenTime.UTC()
	}
	return b.CreationTimestamp.UTC()
}

// periods counts days, or weeks, of which one backup each is kept.
type periods struct {
	keep   int32
	format string // "" for weeks
	seen   map[string]bool
}

func newPeriods(keep int32, format string) *periods {
	return &periods{keep: keep, format: format, seen: map[string]bool{}}
}

// keeps reports whether a backup is the newest of one of the periods that are kept. Backups come newest first.
func (p *periods) keeps(at time.Time) bool {
	period := at.Format(p.format)
	if p.format == "" {
		monday := at.AddDate(0, 0, -(int(at.Weekday())+6)%7)
		period = monday.Format("2006-01-02")
	}
	if p.seen[period] || int32(len(p.seen)) >= p.keep {
		return false
	}
	p.seen[period] = true
	return true
}

// report writes how the policy stands.
func (p *BackupPolicies) report(ctx context.Context, policy *v1alpha1.BackupPolicy, last *metav1.Time, next *time.Time, err error) error {
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Followed", Message: "the policy is followed", ObservedGeneration: policy.Generation}
	if _, known := p.store.Targets.Get(policy.Spec.Target); !known && err == nil {
		err = backingimage.Errorf(backingimage.NotFound, "there is no backup target %q; make it, or the backups fail", policy.Spec.Target)
	}
	if err != nil {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, backingimage.KindOf(err).String(), err.Error()
	}
	_, werr := p.store.Policies.ModifyStatus(ctx, policy.Name, func(now *v1alpha1.BackupPolicy) {
		now.Status.ObservedGeneration, now.Status.LastTime, now.Status.NextTime = policy.Generation, last, nil
		if next != nil {
			at := metav1.NewTime(*next)
			now.Status.NextTime = &at
		}
		meta.SetStatusCondition(&now.Status.Conditions, ready)
	})
	return backingimage.IgnoreNotFound(werr)
}
