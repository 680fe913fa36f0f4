package provisioner_test

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2/ktesting"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner"
)

func TestAbandonedVolumes(t *testing.T) {
	w := newWorld(t)
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error)
	s, err := store.New(w.API, store.Options{}) // the machine's ends with it
	if err != nil {
		t.Fatal(err)
	}
	loop := provisioner.NewAbandoned(s)
	go func() { done <- s.Run(ctx) }()
	go func() { done <- loop.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	if err := s.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	on := func(id, disk, node string) {
		t.Helper()
		v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: id, Finalizers: []string{v1alpha1.VolumeFinalizer}},
			Spec: v1alpha1.VolumeSpec{Name: id, CapacityBytes: 1 << 20, DiskUUID: disk, NodeName: node}}
		if _, err := s.Volumes.Create(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(id, what string, until func(*v1alpha1.Volume) bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, nodetest.Wait)
		defer cancel()
		var last *v1alpha1.Volume
		if err := s.Volumes.Wait(ctx, id, func(v *v1alpha1.Volume) (bool, error) { last = v; return until(v), nil }); err != nil {
			t.Fatalf("volume %s is never %s: %+v", id, what, last)
		}
	}
	abandoned := func(v *v1alpha1.Volume) bool {
		return v != nil && v.Status.Reason == v1alpha1.VolumeAbandoned && strings.Contains(v.Status.Message, "bring the machine back")
	}

	on("left", "gone", "away")
	on("heard", "gone", nodetest.NodeName)
	wait("left", "said to be abandoned", abandoned)
	if v, _ := s.Volumes.Get("heard"); v.Status.Reason == v1alpha1.VolumeAbandoned {
		t.Error("a volume whose agent is heard is said to be abandoned")
	}
	if err := w.volumes.Delete(ctx, "left"); err != nil {
		t.Errorf("a volume that nobody can remove is not let go: %v", err)
	}
	if _, err := s.Volumes.Live(ctx, "left"); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("it is there: %v", err)
	}

	disk := w.Disks[0].UUID()
	v := w.create(t, provisioner.CreateRequest{Name: "stays", RequiredBytes: 1 << 20})
	wait(v.Name, "ready", func(v *v1alpha1.Volume) bool { return v != nil && v.Status.State == v1alpha1.VolumeReady })
	w.Stop()
	for _, err := range []error{s.Disks.Delete(ctx, disk), s.Nodes.Delete(ctx, nodetest.NodeName)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	wait(v.Name, "abandoned with its node", abandoned)
	w.Start()
	wait(v.Name, "well when its machine is back", func(v *v1alpha1.Volume) bool {
		return v != nil && v.Status.State == v1alpha1.VolumeReady && v.Status.Reason == ""
	})
}
