package control

import (
	"cmp"

	"github.com/prometheus/client_golang/prometheus"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// backupCollector counts backups, and tells how old the newest of each volume is, when asked.
type backupCollector struct {
	store   *store.Store
	leading func() bool
	backups *prometheus.Desc
	targets *prometheus.Desc
	newest  *prometheus.Desc
}

func newBackupCollector(s *store.Store, leading func() bool) *backupCollector {
	return &backupCollector{
		store: s, leading: leading,
		backups: prometheus.NewDesc("plinth_backups", "Backups, by state.", []string{"state"}, nil),
		targets: prometheus.NewDesc("plinth_backup_targets", "Backup targets, by whether they can be read and written.", []string{"ready"}, nil),
		newest:  prometheus.NewDesc("plinth_backup_newest_timestamp_seconds", "Moment of the newest complete backup of a volume.", []string{"volume", "target"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *backupCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.backups, c.targets, c.newest} {
		ch <- d
	}
}

// backupStates are counted also when there are none of them.
var backupStates = []v1alpha1.BackupState{v1alpha1.BackupPending, v1alpha1.BackupInProgress, v1alpha1.BackupReady, v1alpha1.BackupFailed}

// Collect implements prometheus.Collector.
func (c *backupCollector) Collect(ch chan<- prometheus.Metric) {
	if !c.leading() {
		return
	}
	states, newest := zeros(backupStates), map[[2]string]float64{}
	for _, b := range c.store.Backups.List() {
		states[string(cmp.Or(b.Status.State, v1alpha1.BackupPending))]++
		if b.Status.State == v1alpha1.BackupReady && b.Spec.Volume != "" && b.Status.TakenTime != nil {
			of := [2]string{b.Spec.Volume, b.Spec.Target}
			newest[of] = max(newest[of], float64(b.Status.TakenTime.Unix()))
		}
	}
	targets := yesNo()
	for _, t := range c.store.Targets.List() {
		targets[condition(t.Status.Conditions, v1alpha1.ConditionReady)]++
	}
	send(ch, c.backups, states)
	send(ch, c.targets, targets)
	for of, at := range newest {
		ch <- prometheus.MustNewConstMetric(c.newest, prometheus.GaugeValue, at, of[0], of[1])
	}
}
