package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
)

// pair is two nodes on one API: n1 with the image controller, n2 with an agent that sees only its own.
func pair(t *testing.T, paths ...string) (one, two *nodetest.Machine) {
	t.Helper()
	api := embeddedtest.MustStart(t)
	one, two = nodetest.New(t, api, "n1"), nodetest.New(t, api, "n2")
	two.AgentOnly = true
	one.Paths = paths
	one.Start()
	t.Cleanup(one.Stop)
	two.Start()
	t.Cleanup(two.Stop)
	return one, two
}

func TestADiskThatIsMovedBringsItsCopiesAndVolumes(t *testing.T) {
	disktest.NeedRoot(t)
	for _, test := range []struct {
		name  string
		leave func(one *nodetest.Machine, d *mounted) // how the disk leaves its node
	}{
		{"from a node that noticed that it is gone", func(one *nodetest.Machine, d *mounted) { d.unmount() }},
		{"from a node that is silent", func(one *nodetest.Machine, d *mounted) { one.Stop(); d.unmount() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := plug(t)
			one, two := pair(t, d.dir)
			uuid := untilOutcome(t, one, d.dir, "open", opened).UUID
			w := nodetest.NewWeb(t, 2<<20)
			image := one.CreateImage("moving", w.URL, "", 1)
			one.UntilReady("moving", "1/1")
			_, err := one.Store.Volumes.Create(context.Background(), &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: "along"}, Spec: v1alpha1.VolumeSpec{Name: "along", CapacityBytes: 1 << 20, DiskUUID: uuid, NodeName: "n1"}})
			must(t, err)
			_, err = one.Store.Snapshots.Create(context.Background(), &v1alpha1.Snapshot{ObjectMeta: metav1.ObjectMeta{Name: "along"}, Spec: v1alpha1.SnapshotSpec{Name: "along", Volume: "along", Type: v1alpha1.SnapshotSnap, DiskUUID: uuid, NodeName: "n1"}})
			must(t, err)
			test.leave(one, d)
			there := t.TempDir()
			d.mount(there)
			wishDisks(t, two, v1alpha1.DiskWish{Path: there})
			if got := untilOutcome(t, two, there, "open", opened).UUID; got != uuid {
				t.Fatalf("it is disk %s there, it was %s", got, uuid)
			}
			untilDisk(t, two, uuid, "Usable")
			if object, _ := two.Store.Disks.Get(uuid); object.Spec.NodeName != "n2" || object.Spec.Path != there {
				t.Errorf("the disk is %+v", object.Spec)
			}
			ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
			defer cancel()
			must(t, two.Store.Copies.Wait(ctx, v1alpha1.CopyName(string(image.UID), uuid), func(c *v1alpha1.BackingImageCopy) (bool, error) {
				return c != nil && c.Spec.NodeName == "n2" && c.Status.State == v1alpha1.CopyReady, nil
			}))
			must(t, two.Store.Volumes.Wait(ctx, "along", func(v *v1alpha1.Volume) (bool, error) { return v != nil && v.Spec.NodeName == "n2", nil }))
			must(t, two.Store.Snapshots.Wait(ctx, "along", func(s *v1alpha1.Snapshot) (bool, error) { return s != nil && s.Spec.NodeName == "n2", nil }))
			time.Sleep(5 * nodetest.Heartbeat) // in which whoever thinks it its own could spoil it
			if left, _ := os.ReadDir(d.dir); len(left) > 0 {
				t.Errorf("a new disk was made where the moved one was: %v", left)
			}
			if got, err := os.ReadFile(filepath.Join(disk.Layout(there).Image(string(image.UID)), disk.ImageFile)); err != nil || !bytes.Equal(got, w.Content) {
				t.Errorf("the copy has %d bytes (%v)", len(got), err)
			}
			if n := w.Served.Load(); n != 2<<20 {
				t.Errorf("the source gave %d bytes: the copy was fetched again", n)
			}
			two.Stop()
			must(t, unix.Unmount(there, unix.MNT_DETACH))
			d.mount(d.dir) // for the clean-up
		})
	}
}

// An agent that was silent, and whose disk was taken over meanwhile, stands down; when the other does not have the disk after all, the disk
// is its own again.
func TestAnAgentStandsDownFromADiskThatIsAnothersNow(t *testing.T) {
	disktest.NeedRoot(t)
	d := plug(t)
	one, two := pair(t, d.dir)
	uuid := untilOutcome(t, one, d.dir, "open", opened).UUID
	w := nodetest.NewWeb(t, 2<<20)
	image := one.CreateImage("stays", w.URL, "", 1)
	one.UntilReady("stays", "1/1")
	before, _ := one.Set.Get(uuid)
	_, err := two.Store.Disks.Modify(context.Background(), uuid, func(d *v1alpha1.Disk) { d.Spec.NodeName = two.NodeName })
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	must(t, one.Store.Disks.Wait(ctx, uuid, func(*v1alpha1.Disk) (bool, error) {
		now, open := one.Set.Get(uuid)
		object, _ := one.Store.Disks.Get(uuid)
		return open && now != before && object.Spec.NodeName == one.NodeName && ready(object) == "Usable", nil
	}))
	if got, err := os.ReadFile(filepath.Join(disk.Layout(d.dir).Image(string(image.UID)), disk.ImageFile)); err != nil || !bytes.Equal(got, w.Content) {
		t.Errorf("the copy has %d bytes (%v)", len(got), err)
	}
}

func TestTwoDisksWithOneUUIDOnTwoNodes(t *testing.T) {
	disktest.NeedRoot(t)
	d, copied := plug(t), plug(t)
	one, two := pair(t, d.dir)
	two.Stop()
	two.TakeOverAfter = nodetest.Wait // however slow the machine is, n1 is not silent
	two.Start()
	uuid := untilOutcome(t, one, d.dir, "open", opened).UUID
	text, err := os.ReadFile(d.identity())
	must(t, err)
	must(t, os.WriteFile(copied.identity(), text, 0o600))
	wishDisks(t, two, v1alpha1.DiskWish{Path: copied.dir})
	o := untilOutcome(t, two, copied.dir, "refused", func(o v1alpha1.NodeDisk) bool { return o.Reason == v1alpha1.DiskTwin })
	says(t, o.Message, uuid, d.dir+" (on node n1)", copied.dir+" (on node n2)")
	time.Sleep(5 * nodetest.Heartbeat) // in which it is tried again
	untilDisk(t, one, uuid, "Usable")
	if object, _ := one.Store.Disks.Get(uuid); object.Spec.NodeName != "n1" || object.Spec.Path != d.dir {
		t.Errorf("the disk is %+v", object.Spec)
	}
	if left, _ := os.ReadDir(copied.dir); len(left) != 1 {
		t.Errorf("the second was written to: %v", left)
	}
	var identity struct{ UUID string }
	must(t, json.Unmarshal(text, &identity))
	if identity.UUID != uuid {
		t.Errorf("identity says %s", identity.UUID)
	}
}
