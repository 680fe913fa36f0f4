package provisioner_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
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
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

// readers are nodes that share an API; the first has the controllers.
type readers struct {
	machines []*nodetest.Machine
	nodes    []provisioner.Node
	volumes  provisioner.Controller
	claims   claims
}

func newReaders(t *testing.T, count int) *readers {
	t.Helper()
	disktest.NeedRoot(t)
	var names []string
	for i := range count {
		names = append(names, fmt.Sprintf("n%d", i+1))
	}
	r := &readers{machines: nodetest.Cluster(t, embeddedtest.MustStart(t), names...), nodes: make([]provisioner.Node, count), claims: claims{}}
	for i, m := range r.machines {
		m.Disks = []*disk.Disk{disktest.MustPool(t, nodetest.PoolBytes)}
		m.More = func(s *store.Store) []nodetest.Part {
			engines := provisioner.NewEngines(m.Set, func(d *disk.Disk) engine.Engine {
				return reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
			})
			r.nodes[i] = provisioner.NewAttacher(m.NodeName, s, engines, clock.RealClock{}, nil)
			parts := []nodetest.Part{provisioner.NewVolumeLoop(s, engines, provisioner.VolumeSources{})}
			if i == 0 {
				r.volumes = provisioner.Idempotent{Controller: provisioner.New(s, provisioner.Options{SizeWait: 5 * time.Second, Claims: r.claims})}
				parts = append(parts, provisioner.NewReaders(s))
			}
			return parts
		}
		m.Start()
	}
	return r
}

// clones are the volumes that lie on a node's disk.
func (r *readers) clones(t *testing.T, node int) []string {
	t.Helper()
	ids, err := r.machines[node].Disks[0].VolumeIDs()
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestManyReaders(t *testing.T) {
	r := newReaders(t, 2)
	web := nodetest.NewWeb(t, 4<<20)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	request := provisioner.CreateRequest{Name: "set", ReadOnlyMany: true, Parameters: download("data", web.URL, web.SHA512())}
	v, err := r.volumes.Create(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if v.Spec.NodeName != "" || v.Spec.DiskUUID != "" || !v.Spec.ReadOnlyMany || v.Spec.CapacityBytes != 4<<20 {
		t.Errorf("spec is %+v", v.Spec)
	}

	t.Run("every node reads the image's bytes, and none can write", func(t *testing.T) {
		for i, node := range r.nodes {
			for range 2 {
				a, err := node.Attach(ctx, "set")
				if err != nil {
					t.Fatalf("node %d: %v", i, err)
				}
				content, err := os.ReadFile(a.Device)
				if err != nil || !bytes.Equal(content, web.Content) || !a.ReadOnly {
					t.Errorf("node %d reads %d bytes that are not the image's (%v), read-only %t", i, len(content), err, a.ReadOnly)
				}
				if f, err := os.OpenFile(a.Device, os.O_WRONLY, 0); err == nil {
					if _, err := f.Write(make([]byte, 4096)); err == nil && f.Sync() == nil {
						t.Errorf("node %d can write to %s", i, a.Device)
					}
					f.Close()
				}
			}
			if abnormal, message := node.Condition(ctx, "set"); abnormal {
				t.Errorf("node %d: %s", i, message)
			}
		}
		if asked := web.Asked.Load(); asked > 2 {
			t.Errorf("the image was asked for %d times: the second node has it from the first", asked)
		}
	})
	t.Run("nobody waits any more, and the clones are no orphans", func(t *testing.T) {
		for _, m := range r.machines {
			n, err := r.machines[0].Store.Nodes.Live(ctx, m.NodeName)
			if err != nil || len(n.Status.Waiting) != 0 {
				t.Errorf("node %s waits for %v (%v)", m.NodeName, n.Status.Waiting, err)
			}
			time.Sleep(2 * nodetest.Heartbeat)
			if d, err := r.machines[0].Store.Disks.Live(ctx, m.Disks[0].UUID()); err != nil || len(d.Status.Orphans) > 0 {
				t.Errorf("orphans of node %s: %v (%v)", m.NodeName, d.Status.Orphans, err)
			}
		}
	})
	t.Run("it is no other volume, cannot grow, and nothing can be made of it", func(t *testing.T) {
		other := request
		other.ReadOnlyMany = false
		if _, err := r.volumes.Create(ctx, other); !backingimage.Is(err, backingimage.Conflict) {
			t.Errorf("for one node: %v", err)
		}
		if again, err := r.volumes.Create(ctx, request); err != nil || again.UID != v.UID {
			t.Errorf("again: %v", err)
		}
		if _, err := r.volumes.Expand(ctx, "set", 8<<20, 0); !backingimage.Is(err, backingimage.Precondition) {
			t.Errorf("to grow it: %v", err)
		}
		if _, err := r.volumes.Create(ctx, provisioner.CreateRequest{Name: "clone", SourceVolume: "set"}); !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), "its image, data") {
			t.Errorf("to clone it: %v", err)
		}
		for says, bad := range map[string]provisioner.CreateRequest{"backingImage": {Name: "no-image", ReadOnlyMany: true}} {
			if _, err := r.volumes.Create(ctx, bad); !backingimage.Is(err, backingimage.Invalid) || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", bad.Name, err)
			}
		}
	})
	t.Run("a node whose copy goes reads on, and its image stays while somebody may want to read it", func(t *testing.T) {
		s := r.machines[0].Store
		if err := s.Images.Delete(ctx, "data"); err != nil {
			t.Fatal(err)
		}
		r.machines[0].UntilImage("data", "held", func(i *v1alpha1.BackingImage) bool {
			return i != nil && strings.Contains(i.Status.Message, "waits for volume set")
		})
	})
	t.Run("what is unstaged leaves nothing, and what was deleted meanwhile is removed at the next start", func(t *testing.T) {
		for range 2 {
			if err := r.nodes[0].Detach(ctx, "set"); err != nil {
				t.Fatal(err)
			}
		}
		if left := r.clones(t, 0); len(left) > 0 {
			t.Errorf("left are %v", left)
		}
		if _, err := r.nodes[1].Attached(ctx, "set"); err != nil {
			t.Fatal(err)
		}
		r.machines[1].Stop()
		if err := r.volumes.Delete(ctx, "set"); err != nil {
			t.Fatal(err)
		}
		r.machines[0].UntilGone("data")
		r.machines[1].Start()
		for deadline := time.Now().Add(nodetest.Wait); len(r.clones(t, 1)) > 0; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("left are %v", r.clones(t, 1))
			}
		}
	})
}
