package controller_test

import (
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
)

func TestPlan(t *testing.T) {
	for name, tc := range map[string]struct {
		state  controller.State
		create string // disks, the origin's marked with *
		delete string
		origin string
		wanted int
		short  string // part of the sentence
		done   bool
	}{
		"a new image gets its minimum on the roomiest disk": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20")),
			create: "d2*", wanted: 1,
		},
		"copies spread over nodes before disks": {
			state:  state(image("a", copies(2)), disks("d1/n1/30", "d2/n1/20", "d3/n2/10")),
			create: "d1* d3", wanted: 2,
		},
		"an image that is made for a volume begins on its disk": {
			state:  state(image("a", copies(2), firstDisk("d3")), disks("d1/n1/30", "d2/n1/20", "d3/n2/10")),
			create: "d1 d3*", wanted: 2,
		},
		"a first copy's disk must be one that copies may be on": {
			state:  state(image("a", copies(1), firstDisk("d2")), disks("d1/n1/10", "d2/n2/20/cordoned")),
			create: "d1*", wanted: 1,
		},
		"a first copy's disk means nothing once there is a copy": {
			state:  state(image("a", copies(2), firstDisk("d1")), disks("d1/n1/10", "d2/n1/20", "d3/n2/30"), copyOf("a", "d2", v1alpha1.CopyReady)),
			create: "d3", wanted: 2,
		},
		"fewer disks than wanted copies is said, and what can be made is": {
			state:  state(image("a", copies(3)), disks("d1/n1/10")),
			create: "d1*", wanted: 3, short: "only 1 of 3 copies can be placed",
		},
		"no disk at all is said": {
			state: state(image("a", copies(1))), wanted: 1, short: "no disk is registered",
		},
		"a volume that waits wants a copy on its disk, and that copy is the origin": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20"), waiting("v", "a", "d1")),
			create: "d1*", wanted: 1,
		},
		"a volume waits on an unschedulable disk all the same": {
			state:  state(image("a", copies(1)), disks("d1/n1/10/cordoned"), waiting("v", "a", "d1")),
			create: "d1*", wanted: 1,
		},
		"a cloned volume wants no copy": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n2/20"), cloned("v", "a", "d1")),
			create: "d2*", wanted: 1,
		},
		"a second copy is no origin when the first is ready": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20"), copyOf("a", "d1", v1alpha1.CopyReady), waiting("v", "a", "d2")),
			create: "d2", wanted: 1,
		},
		"an origin that is gone is replaced": {
			state:  state(image("a", copies(1)), disks("d1/n1/10"), copyOf("a", "d1", v1alpha1.CopyPending)),
			origin: name("a", "d1"), wanted: 1,
		},
		"prefetch wants a copy on every disk that the selectors match": {
			state: state(image("a", copies(1), func(i *v1alpha1.BackingImage) {
				i.Spec.Prefetch, i.Spec.DiskSelector = true, []string{"fast"}
			}), disks("d1/n1/10/fast", "d2/n1/20", "d3/n2/30/fast")),
			create: "d1* d3", wanted: 2,
		},
		"a disk in the map gets a copy; an unknown one harms nobody": {
			state: state(image("a", copies(1), func(i *v1alpha1.BackingImage) {
				i.Spec.DiskFileSpecMap = map[string]v1alpha1.DiskFileSpec{"d1": {}, "nowhere": {}}
			}), disks("d1/n1/10", "d2/n1/20")),
			create: "d1*", wanted: 1,
		},
		"selectors that no disk matches are named": {
			state: state(image("a", copies(1), func(i *v1alpha1.BackingImage) { i.Spec.DiskSelector = []string{"nvme"} }), disks("d1/n1/10/fast")), wanted: 1,
			short: `diskSelector ["nvme"]`,
		},
		"copies of an image that had the name before go": {
			state:  state(image("a", copies(1)), disks("d1/n1/10"), foreignCopy("a", "d1")),
			delete: name("old", "d1"), create: "d1*", wanted: 1,
		},
		"an export's origin is on its volume's disk, whatever its selectors and the room say": {
			state: state(image("a", copies(1), func(i *v1alpha1.BackingImage) { i.Spec.DiskSelector = []string{"fast"} }),
				disks("d1/n1/10/cordoned", "d2/n1/20/fast"), near(true, "d1")),
			create: "d1*", wanted: 1,
		},
		"an export that a volume waits for elsewhere is made on its own disk first": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20"), near(true, "d1"), waiting("v", "a", "d2")),
			create: "d1* d2", wanted: 2,
		},
		"an origin on another disk than the exported volume's is no use": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20"), near(true, "d1"), originOf("a", "d2")),
			create: "d1*", wanted: 1,
		},
		"an export that has failed for good is not tried on another disk": {
			state: state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20"), near(true, "d1"), originOf("a", "d2"), failed), wanted: 1,
		},
		"an export whose disk is gone has its copy anywhere, to say so": {
			state:  state(image("a", copies(1)), disks("d2/n1/20"), near(true, "d1")),
			create: "d2*", wanted: 1,
		},
		"a clone's origin is on a disk with its source, roomiest first": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20", "d3/n2/30"), near(false, "d1", "d2")),
			create: "d2*", wanted: 1,
		},
		"a clone keeps to its selectors, on the node of its source": {
			state: state(image("a", copies(1), func(i *v1alpha1.BackingImage) { i.Spec.DiskSelector = []string{"fast"} }),
				disks("d1/n1/10", "d2/n1/20/fast", "d3/n2/30/fast"), near(false, "d1")),
			create: "d2*", wanted: 1,
		},
		"a clone that a volume waits for on its source's disk is made there": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20"), near(false, "d1", "d2"), waiting("v", "a", "d1")),
			create: "d1*", wanted: 1,
		},
		"a ready clone needs its source no longer": {
			state:  state(image("a", copies(1)), disks("d1/n1/10", "d2/n1/20"), near(false, "d1"), copyOf("a", "d2", v1alpha1.CopyReady)),
			wanted: 1,
		},
		"an image that is deleted goes with its copies": {
			state:  state(image("a", copies(1), deleting), disks("d1/n1/10"), copyOf("a", "d1", v1alpha1.CopyInProgress)),
			delete: name("a", "d1"), done: true,
		},
		"an image that is deleted stays while a volume waits for it": {
			state:  state(image("a", copies(1), deleting), disks("d1/n1/10"), originOf("a", "d1"), waiting("v", "a", "d1")),
			wanted: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := controller.Plan(tc.state)
			if got := created(d); got != tc.create {
				t.Errorf("creates %q, want %q", got, tc.create)
			}
			if got := strings.Join(d.Delete, " "); got != tc.delete {
				t.Errorf("deletes %q, want %q", got, tc.delete)
			}
			if d.Origin != tc.origin || d.Wanted != tc.wanted || d.Done != tc.done {
				t.Errorf("origin %q, wanted %d, done %t; want %q, %d, %t", d.Origin, d.Wanted, d.Done, tc.origin, tc.wanted, tc.done)
			}
			if !strings.Contains(d.Short, tc.short) || (tc.short == "") != (d.Short == "") {
				t.Errorf("short: %q, want %q in it", d.Short, tc.short)
			}
		})
	}
}
