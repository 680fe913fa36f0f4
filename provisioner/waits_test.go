package provisioner_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/provisioner"
)

// says attaches on a node, again and again, until the gate's answer has all of these.
func (r *readers) says(t *testing.T, node int, volume string, parts ...string) {
	t.Helper()
	for deadline := time.Now().Add(2 * nodetest.Wait); ; {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := r.nodes[node].Attach(ctx, volume)
		cancel()
		missing := ""
		for _, part := range parts {
			if err != nil && !strings.Contains(err.Error(), part) {
				missing = part
			}
		}
		switch {
		case err == nil || !backingimage.Is(err, backingimage.NotReady):
			t.Fatalf("got %v, want that it is not ready", err)
		case missing == "":
			return
		case time.Now().After(deadline):
			t.Fatalf("got %v, want %q in it", err, missing)
		}
	}
}

// schedule lets new copies onto a node's disk, or not, and returns when the controllers know.
func (r *readers) schedule(t *testing.T, node int, allow bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nodetest.Wait)
	defer cancel()
	disks, uuid := r.machines[0].Store.Disks, r.machines[node].Disks[0].UUID()
	if _, err := disks.Modify(ctx, uuid, func(d *v1alpha1.Disk) { d.Spec.AllowScheduling = &allow }); err != nil {
		t.Fatal(err)
	}
	if err := disks.Wait(ctx, uuid, func(d *v1alpha1.Disk) (bool, error) {
		return d != nil && d.Spec.AllowScheduling != nil && *d.Spec.AllowScheduling == allow, nil
	}); err != nil {
		t.Fatal(err)
	}
}

// An agent knows its own node's copies alone, and tells all the same how far the first one is on another node.
func TestProgressOnAnotherNodeIsTold(t *testing.T) {
	r := newReaders(t, 2)
	ctx := context.Background()
	web := nodetest.NewWeb(t, 8<<20)
	web.Hold = make(chan struct{})
	defer close(web.Hold)
	r.schedule(t, 1, false)
	r.machines[0].CreateImage("held", web.URL, "", 1)
	r.machines[0].UntilState("held", v1alpha1.CopyInProgress)
	r.schedule(t, 1, true)
	for _, request := range []provisioner.CreateRequest{{Name: "there", Nodes: []string{"n2"}}, {Name: "set", ReadOnlyMany: true}} {
		request.Parameters = map[string]string{"backingImage": "held"}
		if _, err := r.volumes.Create(ctx, request); err != nil {
			t.Fatal(err)
		}
	}
	held := "backing image held: fetching on n1, "
	r.says(t, 1, "there", "volume there is not ready yet: "+held, "% of 8 MiB")
	r.says(t, 1, "set", "volume set is not ready on node n2 yet: "+held, "% of 8 MiB")
}
