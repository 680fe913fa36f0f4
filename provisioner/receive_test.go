package provisioner_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded/embeddedtest"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

// newWorlds are machines of one cluster that give each other snapshots; the first one runs the controllers.
func newWorlds(t *testing.T, names ...string) []*world {
	t.Helper()
	disktest.NeedRoot(t)
	var list []*world
	for i, m := range nodetest.Cluster(t, embeddedtest.MustStart(t), names...) {
		w := &world{Machine: m}
		m.Disks = append(m.Disks, disktest.MustPool(t, nodetest.PoolBytes))
		w.engine = reflink.New(m.Disks[0].Layout(), reflink.Options{Capacity: m.Disks[0].Capacity})
		var engines *provisioner.Engines
		var offers *provisioner.Offers
		m.Peering.Snapshots = func(open *disk.Set) transfer.Snapshots {
			engines = provisioner.NewEngines(open, func(*disk.Disk) engine.Engine { return w.engine })
			offers = provisioner.NewOffers(m.NodeName, engines, clock.RealClock{})
			return offers
		}
		m.More = func(s *store.Store) []nodetest.Part {
			w.node = provisioner.NewAttacher(m.NodeName, s, engines, clock.RealClock{}, nil)
			parts := []nodetest.Part{provisioner.NewVolumeLoop(s, engines, provisioner.VolumeSources{Offers: offers, Identity: m.Peering.Identity}), provisioner.NewSnapshotLoop(s, engines)}
			if i == 0 {
				w.volumes = provisioner.Idempotent{Controller: provisioner.New(s, provisioner.Options{AgentWait: nodetest.Wait})}
				parts = append(parts, provisioner.NewPoints(s), provisioner.NewAbandoned(s))
			}
			return parts
		}
		m.Start()
		list = append(list, w)
	}
	return list
}

// fill writes random data to a volume, here and there, and returns its content.
func (w *world) fill(t *testing.T, id string) []byte {
	t.Helper()
	f, err := os.OpenFile(w.attach(t, id).Device, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	random := rand.NewChaCha8([32]byte{byte(len(id))})
	for offset := int64(1 << 20); offset < 48<<20; offset += 7 << 20 {
		piece := make([]byte, 3<<20)
		random.Read(piece)
		_, err := f.WriteAt(piece, offset)
		must(t, err)
	}
	must(t, f.Sync())
	content, err := os.ReadFile(f.Name())
	must(t, err)
	return content
}

// holdsFirst compares a volume's content, which is followed by zeros.
func (w *world) holdsFirst(t *testing.T, id string, want []byte, size int) {
	t.Helper()
	got, err := os.ReadFile(w.attach(t, id).Device)
	must(t, err)
	if len(got) != size || !bytes.Equal(got[:len(want)], want) || slices.Max(append(got[len(want):], 0)) > 0 {
		t.Errorf("volume %s has %d bytes, or other ones", id, len(got))
	}
}

func TestVolumesOnOtherNodes(t *testing.T) {
	c := newWorlds(t, "n1", "n2")
	first, second := c[0], c[1]
	ctx := context.Background()
	v := first.create(t, provisioner.CreateRequest{Name: "db", RequiredBytes: 64 << 20, Nodes: []string{"n1"}})
	content := first.fill(t, v.Name)
	s := first.snapshot(t, provisioner.SnapshotRequest{Name: "s", Volume: v.Name})

	t.Run("a snapshot becomes a volume on its own node where that is allowed", func(t *testing.T) {
		here := first.create(t, provisioner.CreateRequest{Name: "here", SourceHandle: s.Handle, Nodes: []string{"n2", "n1"}})
		if here.Spec.NodeName != "n1" || here.Spec.SourceDisk != "" {
			t.Errorf("spec is %+v", here.Spec)
		}
	})
	t.Run("a snapshot becomes a larger volume elsewhere", func(t *testing.T) {
		there := first.create(t, provisioner.CreateRequest{Name: "there", SourceHandle: s.Handle, RequiredBytes: 80 << 20, Nodes: []string{"n2"}})
		if there.Spec.NodeName != "n2" || there.Spec.SourceDisk != v.Spec.DiskUUID {
			t.Errorf("spec is %+v", there.Spec)
		}
		second.holdsFirst(t, "there", content, 80<<20)
		first.create(t, provisioner.CreateRequest{Name: "there", SourceHandle: s.Handle, RequiredBytes: 80 << 20, Nodes: []string{"n2"}})
		var used int64
		info, err := second.engine.Stat(ctx, "there")
		if used = info.UsedBytes; err != nil || used > 40<<20 {
			t.Errorf("it uses %d bytes (%v): holes were not kept", used, err)
		}
	})
	t.Run("a clone has what its source had when it was asked for", func(t *testing.T) {
		first.create(t, provisioner.CreateRequest{Name: "clone", SourceVolume: v.Name, Nodes: []string{"n2"}})
		first.write(t, v.Name, 0xee)
		second.holdsFirst(t, "clone", content, 64<<20)
		first.untilSnapshot(t, v1alpha1.ClonePoint("clone"), "gone", func(s *v1alpha1.Snapshot) bool { return s == nil })
	})
	t.Run("a controller is told where a snapshot has data, and what differs", func(t *testing.T) { tellsExtents(t, first, content) })
	t.Run("nothing is left in staging", func(t *testing.T) {
		second.Stop()
		second.Start()
		deadline := time.Now().Add(nodetest.Wait)
		for {
			left, err := second.Disks[0].ReceiptIDs()
			if must(t, err); len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("left: %v", left)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Run("a volume waits for a node that is away, says so, and goes on", func(t *testing.T) { waitsForNode(t, first, second, content) })
}

// waitsForNode makes a volume on the first node of a snapshot on the second one, which is away meanwhile.
func waitsForNode(t *testing.T, first, second *world, content []byte) {
	ctx := context.Background()
	s := first.snapshot(t, provisioner.SnapshotRequest{Name: "away", Volume: "clone"})
	second.Stop()
	r := provisioner.CreateRequest{Name: "late", SourceHandle: s.Handle, Nodes: []string{"n1"}}
	first.create(t, r)
	first.untilVolume(t, "late", "waiting for n2", func(v *v1alpha1.Volume) bool {
		return v != nil && v.Status.State == v1alpha1.VolumePending && strings.Contains(v.Status.Message, "receiving snapshot away from node n2")
	})
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err := first.node.Attach(short, "late")
	wantKind(t, err, backingimage.NotReady, "receiving snapshot away from node n2")
	wantKind(t, first.volumes.DeleteSnapshot(ctx, s.Handle), backingimage.InUse, "late")
	second.Start()
	first.holdsFirst(t, "late", content, 64<<20)
	must(t, first.volumes.DeleteSnapshot(ctx, s.Handle))
	first.create(t, provisioner.CreateRequest{Name: "dropped", SourceHandle: "snap://db/s", Nodes: []string{"n2"}})
	must(t, first.volumes.Delete(ctx, "dropped"))
	if left, err := second.Disks[0].ReceiptIDs(); err != nil || len(left) > 0 {
		t.Errorf("a volume that was deleted left %v, %v", left, err)
	}
}

func TestSnapshotsBetweenDisksOfANode(t *testing.T) {
	w := newWorldOn(t, 2)
	disks := map[string]bool{}
	for i := range 2 {
		v := w.create(t, provisioner.CreateRequest{Name: []string{"a", "b"}[i], RequiredBytes: 64 << 20})
		disks[v.Spec.DiskUUID] = true
		w.untilKnown(t, v.Name)
	}
	if len(disks) != 2 {
		t.Fatal("the volumes are on one disk")
	}
	content := w.fill(t, "a")
	s := w.snapshot(t, provisioner.SnapshotRequest{Name: "s", Volume: "a"})
	home, err := w.Store.Volumes.Live(context.Background(), "a")
	must(t, err)
	_, err = w.Store.Disks.Modify(context.Background(), home.Spec.DiskUUID, func(d *v1alpha1.Disk) { d.Spec.AllowScheduling = new(bool) })
	must(t, err)
	w.untilSchedulable(t, home.Spec.DiskUUID)
	v := w.create(t, provisioner.CreateRequest{Name: "c", SourceHandle: s.Handle})
	if v.Spec.SourceDisk != home.Spec.DiskUUID {
		t.Errorf("spec is %+v", v.Spec)
	}
	w.holdsFirst(t, "c", content, 64<<20)
}

// untilKnown waits until the cache knows a volume, whose room is then counted.
func (w *world) untilKnown(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	must(t, w.Store.Volumes.Wait(ctx, id, func(v *v1alpha1.Volume) (bool, error) { return v != nil, nil }))
}

// untilSchedulable waits until the cache knows that a disk takes nothing new.
func (w *world) untilSchedulable(t *testing.T, uuid string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	must(t, w.Store.Disks.Wait(ctx, uuid, func(d *v1alpha1.Disk) (bool, error) { return d != nil && !d.Schedulable(), nil }))
}

// tellsExtents asks for extents of the volume db, whose content is given as it was at snapshot s. The volume was written to since.
func tellsExtents(t *testing.T, w *world, content []byte) {
	ctx := context.Background()
	first := w.snapshot(t, provisioner.SnapshotRequest{Name: "now", Volume: "db"})
	w.write(t, "db", 0xdd)
	second := w.snapshot(t, provisioner.SnapshotRequest{Name: "then", Volume: "db"})
	list := func(handle, base string, from int64) (ranges [][2]int64) {
		t.Helper()
		must(t, w.volumes.Extents(ctx, handle, base, from, func(offset, bytes int64) error {
			ranges = append(ranges, [2]int64{offset, bytes})
			return nil
		}))
		return ranges
	}
	rest := bytes.Clone(content)
	all := list("snap://db/s", "", 0)
	for _, r := range all {
		clear(rest[r[0] : r[0]+r[1]])
	}
	if slices.Max(rest) != 0 || len(all) < 7 {
		t.Errorf("there is data beside %v", all)
	}
	if some := list("snap://db/s", "", all[1][0]); len(some) != len(all)-1 || some[0] != all[1] {
		t.Errorf("from byte %d on: %v", all[1][0], some)
	}
	if got := list(second.Handle, first.Handle, 0); len(got) != 1 || got[0] != [2]int64{0, 1 << 20} {
		t.Errorf("what was written since: %v", got)
	}
	if got := list(first.Handle, first.Handle, 0); len(got) != 0 {
		t.Errorf("since itself: %v", got)
	}
	none := func(int64, int64) error { return nil }
	wantKind(t, w.volumes.Extents(ctx, "snap://db/none", "", 0, none), backingimage.NotFound)
	wantKind(t, w.volumes.Extents(ctx, "bi://backing?backingImage=i", "", 0, none), backingimage.Precondition, "type is bi")
	live, err := w.Store.Snapshots.Live(ctx, "s")
	if must(t, err); len(live.Spec.AccessTokens) > 0 {
		t.Errorf("tokens were left: %v", live.Spec.AccessTokens)
	}
	n, _ := w.Store.Nodes.Get("n1")
	for what, token := range map[string]transfer.Token{"no token": "", "a wrong one": transfer.NewToken()} {
		client := transfer.NewSnapshotClient(n.Status.Address, n.Status.PublicKeyHash, string(live.UID), token)
		if err := client.Extents(ctx, "", 0, func(int64, transfer.Extent) error { return nil }); !backingimage.Is(err, backingimage.Precondition) {
			t.Errorf("with %s: %v", what, err)
		}
	}
}
