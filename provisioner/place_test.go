package provisioner_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/node/nodetest"
)

// Where no node was chosen, volumes go where their image's first copy is, whatever order the sidecar gives the nodes to spread them. A scheduler's
// choice is kept: an image that is made for the volume has its first copy there, and any other gets a second one.
func TestVolumesGoWhereTheirImageIs(t *testing.T) {
	r := newReaders(t, 2)
	web := nodetest.NewWeb(t, 4<<20)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	class := download("golden", web.URL, web.SHA512())
	create := func(claim string, nodes ...string) *v1alpha1.Volume {
		t.Helper()
		r.claims[claim] = ""
		request := of(claim, class)
		request.Nodes = nodes
		v, err := r.volumes.Create(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	nodesWithCopy := func(image string) []string {
		t.Helper()
		copies, err := r.machines[0].Store.Copies.LiveList(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var nodes []string
		for _, c := range copies {
			if c.Spec.Image == image {
				nodes = append(nodes, c.Spec.NodeName)
			}
		}
		return nodes
	}

	create("a", "n1", "n2") // at its time the first copy is being made
	copies := nodesWithCopy("golden")
	if len(copies) != 1 {
		t.Fatalf("copies are on %v", copies)
	}
	notOn := map[string]string{"n1": "n2", "n2": "n1"}
	here, other := copies[0], notOn[copies[0]]
	for _, claim := range []string{"b", "c"} {
		if v := create(claim, other, here); v.Spec.NodeName != here {
			t.Errorf("the volume of claim %s is on %s, the image's copy on %s", claim, v.Spec.NodeName, here)
		}
	}
	if again := nodesWithCopy("golden"); len(again) != 1 {
		t.Errorf("copies are on %v", again)
	}
	if v := create("late", other, here); v.Spec.NodeName != other {
		t.Errorf("the scheduler chose %s, and the volume is on %s", other, v.Spec.NodeName)
	}
	if v := create("only", other); v.Spec.NodeName != other {
		t.Errorf("%s alone is allowed, and the volume is on %s", other, v.Spec.NodeName)
	}
	for node, other := range notOn {
		image := "for-" + node
		class = download(image, web.URL, web.SHA512())
		if v := create("late-"+node, node, other); v.Spec.NodeName != node {
			t.Errorf("the scheduler chose %s, and the volume is on %s", node, v.Spec.NodeName)
		}
		if on := nodesWithCopy(image); !slices.Equal(on, []string{node}) {
			t.Errorf("the volume of an image made for it is on %s, the image's copies on %v", node, on)
		}
	}
}
