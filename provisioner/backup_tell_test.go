package provisioner_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2/ktesting"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/provisioner"
)

func TestWhatBecomesOfBackupsIsTold(t *testing.T) {
	w, place := newWorld(t), filepath.Join(t.TempDir(), "place")
	must(t, os.Mkdir(place, 0o700))
	events := &recorded{}
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	go func() { done <- provisioner.NewBackupTeller(w.Store, events).Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	w.target(t, "nas", "file://"+place, "", metav1.ConditionTrue)
	if e := events.until(t, "Usable", "backup target nas"); e.Warning || e.About.Kind != "BackupTarget" || e.About.Name != "nas" {
		t.Errorf("told %+v", e)
	}
	w.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 8 << 20})
	w.write(t, "db", 5)
	_, b := w.backedUp(t, "first", "db")
	if e := events.until(t, "Started", "the backup of volume db to target nas has begun on node "); e.Warning || e.About.Kind != "Backup" || e.About.UID != b.UID {
		t.Errorf("told %+v", e)
	}
	if e := events.until(t, "Completed", "8 MiB, of which "); e.Warning || e.About.UID != b.UID {
		t.Errorf("told %+v", e)
	}
	must(t, os.Rename(place, place+".away"))
	_, err := w.Store.Targets.Modify(ctx, "nas", func(now *v1alpha1.BackupTarget) { now.Spec.Concurrency = 2 }) // so that it is looked at now
	must(t, err)
	if e := events.until(t, "Precondition", "mount what belongs there"); !e.Warning || e.About.Name != "nas" {
		t.Errorf("told %+v", e)
	}
	_, err = w.Store.Backups.Create(ctx, &v1alpha1.Backup{ObjectMeta: metav1.ObjectMeta{Name: "second"}, Spec: v1alpha1.BackupSpec{Target: "nas", Volume: "db"}})
	must(t, err)
	if e := events.until(t, "Failed", "mount what belongs there"); !e.Warning || e.About.Name != "second" {
		t.Errorf("told %+v", e)
	}
}
