package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
)

func TestMetricsTellOfObjectsWhileThisProcessLeads(t *testing.T) {
	s, err := store.New(embeddedtest.MustStart(t), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	mustFill(t, s)
	leads := false
	r := prometheus.NewPedanticRegistry()
	RegisterMetrics(r, s, func() bool { return leads })
	if got := mustGather(t, r); !maps.Equal(got, map[string]float64{"plinth_leader": 0}) {
		t.Errorf("while it does not lead it tells %v", got)
	}
	leads = true
	got := mustGather(t, r)
	for name, want := range map[string]float64{
		"plinth_volumes_abnormal": 0, "plinth_leader": 1, `plinth_images state="ready"`: 1, `plinth_volumes state="pending"`: 1,
		`plinth_image_copies_ready image="fedora"`: 1, `plinth_image_copies_wanted image="fedora"`: 3,
		`plinth_backups state="ready"`: 1, `plinth_backups state="failed"`: 0, `plinth_backup_targets ready="false"`: 1,
		`plinth_backup_newest_timestamp_seconds target="nas" volume="v"`: 1000,
		`plinth_disk_capacity_bytes disk="d1" node="n1" path="/srv"`:     1000, `plinth_disk_available_bytes disk="d1" node="n1" path="/srv"`: 120,
		`plinth_disk_ready disk="d1" node="n1" path="/srv"`: 0, `plinth_disk_full disk="d1" node="n1" path="/srv"`: 0, `plinth_disk_orphans disk="d1" node="n1" path="/srv"`: 1,
	} {
		if value, told := got[name]; !told || value != want {
			t.Errorf("%s is %v, want %v; there are %v", name, got[name], want, slices.Sorted(maps.Keys(got)))
		}
	}
}

// mustFill makes an object of each kind that is told of, and waits until the cache has them.
func mustFill(t *testing.T, s *store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(nil, s.Synced(ctx))
	must(s.Images.Create(ctx, &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: "fedora"}, Spec: v1alpha1.BackingImageSpec{SourceType: v1alpha1.SourceUpload}}))
	must(s.Images.ModifyStatus(ctx, "fedora", func(i *v1alpha1.BackingImage) { i.Status.State, i.Status.Copies = v1alpha1.CopyReady, "1/3" }))
	must(s.Images.Create(ctx, &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: "new"}, Spec: v1alpha1.BackingImageSpec{SourceType: v1alpha1.SourceUpload}}))
	must(s.Disks.Create(ctx, &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: "d1"}, Spec: v1alpha1.DiskSpec{NodeName: "n1", Path: "/srv"}}))
	must(s.Disks.ModifyStatus(ctx, "d1", func(d *v1alpha1.Disk) {
		d.Status.CapacityBytes, d.Status.AvailableBytes = 1000, 120
		d.Status.Orphans = []v1alpha1.Orphan{{Kind: v1alpha1.OrphanVolume, Name: "v", Path: "/srv/volumes/v"}}
	}))
	must(s.Volumes.Create(ctx, &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: v1alpha1.VolumeSpec{Name: "v", CapacityBytes: 1, DiskUUID: "d1"}}))
	must(s.Targets.Create(ctx, &v1alpha1.BackupTarget{ObjectMeta: metav1.ObjectMeta{Name: "nas"}, Spec: v1alpha1.BackupTargetSpec{URL: "file:///mnt"}}))
	must(s.Backups.Create(ctx, &v1alpha1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: v1alpha1.BackupSpec{Target: "nas", Volume: "v"}}))
	taken := metav1.NewMicroTime(time.Unix(1000, 0))
	must(s.Backups.ModifyStatus(ctx, "b", func(b *v1alpha1.Backup) { b.Status.State, b.Status.TakenTime = v1alpha1.BackupReady, &taken }))
	must(nil, s.Targets.Wait(ctx, "nas", func(t *v1alpha1.BackupTarget) (bool, error) { return t != nil, nil }))
	must(nil, s.Backups.Wait(ctx, "b", func(b *v1alpha1.Backup) (bool, error) { return b != nil && b.Status.TakenTime != nil, nil }))
	must(nil, s.Volumes.Wait(ctx, "v", func(v *v1alpha1.Volume) (bool, error) { return v != nil, nil }))
	must(nil, s.Disks.Wait(ctx, "d1", func(d *v1alpha1.Disk) (bool, error) { return d != nil && d.Status.AvailableBytes > 0, nil }))
	must(nil, s.Images.Wait(ctx, "fedora", func(i *v1alpha1.BackingImage) (bool, error) { return i != nil && i.Status.Copies != "", nil }))
}

// mustGather returns what a registry tells, by name and labels.
func mustGather(t *testing.T, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += fmt.Sprintf(" %s=%q", l.GetName(), l.GetValue())
			}
			got[name] = m.GetGauge().GetValue()
		}
	}
	return got
}

func TestOldestPendingVolume(t *testing.T) {
	now := time.Now()
	volume := func(age time.Duration, state v1alpha1.VolumeState) *v1alpha1.Volume {
		return &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-age))}, Status: v1alpha1.VolumeStatus{State: state}}
	}
	gone := volume(time.Hour, v1alpha1.VolumePending)
	gone.DeletionTimestamp = &metav1.Time{Time: now}
	waiting := []*v1alpha1.Volume{volume(2*time.Hour, v1alpha1.VolumeReady), volume(time.Hour, v1alpha1.VolumeFailed), gone, volume(time.Minute, v1alpha1.VolumePending), volume(time.Second, "")}
	if got := oldestPending(waiting, now); got != time.Minute {
		t.Errorf("got %s", got)
	}
	if got := oldestPending(waiting[:3], now); got != 0 {
		t.Errorf("none waits: got %s", got)
	}
}
