package controller_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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

// TestPlanInvariants plans random and contradictory states to rest.
func TestPlanInvariants(t *testing.T) {
	for seed := range uint64(10_000) {
		checkInvariants(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func FuzzPlan(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { checkInvariants(t, seed) })
}

func checkInvariants(t *testing.T, seed uint64) {
	s := randomState(rand.New(rand.NewPCG(seed, 7)))
	for round := range 4 {
		d := controller.Plan(s)
		checkDecision(t, s, d)
		if round > 0 && len(d.Create)+len(d.Delete) > 0 || round > 1 && d.Origin != "" {
			t.Errorf("round %d still acts: %+v", round, d)
		}
		apply(&s, d)
	}
	if s.Image.DeletionTimestamp != nil {
		return
	}
	if origins := countOrigins(s); len(s.Copies) > 0 && origins == 0 && !hasReady(s) {
		t.Errorf("copies, none ready, and none is the origin: %+v", s.Copies)
	}
}

func checkDecision(t *testing.T, s controller.State, d controller.Decision) {
	waiting := map[string]bool{}
	for _, v := range s.Volumes {
		if v.Waits() && v.Spec.Image.UID == string(s.Image.UID) {
			waiting[v.Spec.DiskUUID] = true
		}
	}
	for _, c := range s.Copies {
		mine := c.Spec.ImageUID == string(s.Image.UID)
		if mine && slices.Contains(d.Delete, c.Name) && (s.Image.DeletionTimestamp == nil || len(waiting) > 0) {
			t.Errorf("deletes copy %s of an image that is wanted", c.Name)
		}
	}
	seen := map[string]bool{}
	for _, c := range d.Create {
		if seen[c.DiskUUID] {
			t.Errorf("two copies on disk %s", c.DiskUUID)
		}
		seen[c.DiskUUID] = true
	}
	checkOrigin(t, s, d)
	for disk := range waiting {
		has := seen[disk] || slices.ContainsFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool {
			return c.Spec.DiskUUID == disk && c.Spec.ImageUID == string(s.Image.UID)
		})
		known := slices.ContainsFunc(s.Disks, func(d *v1alpha1.Disk) bool { return d.Name == disk })
		if known && !has {
			t.Errorf("a volume waits on disk %s and gets no copy there", disk)
		}
	}
	if d.Done && len(waiting) > 0 {
		t.Errorf("lets the image go while volumes wait")
	}
}

// checkOrigin checks that an export whose disk is known and which is not made, and has not failed, is made on that disk.
func checkOrigin(t *testing.T, s controller.State, d controller.Decision) {
	known := slices.ContainsFunc(s.Disks, func(d *v1alpha1.Disk) bool { return slices.Contains(s.Near.Disks, d.Name) })
	over := slices.ContainsFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool {
		return c.Spec.ImageUID == string(s.Image.UID) && (c.Status.State == v1alpha1.CopyReady || c.Spec.Origin && c.Final())
	})
	if !s.Near.Only || !known || over || d.Done {
		return
	}
	s.Copies = slices.Clone(s.Copies)
	for i, c := range s.Copies {
		s.Copies[i] = c.DeepCopy()
	}
	apply(&s, d)
	if !slices.ContainsFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool {
		return c.Spec.Origin && slices.Contains(s.Near.Disks, c.Spec.DiskUUID)
	}) {
		t.Errorf("an export has no origin on its volume's disk %v: %+v", s.Near.Disks, d)
	}
}

func apply(s *controller.State, d controller.Decision) {
	s.Copies = slices.DeleteFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool { return slices.Contains(d.Delete, c.Name) })
	for _, spec := range d.Create {
		s.Copies = append(s.Copies, &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.CopyName(spec.ImageUID, spec.DiskUUID)}, Spec: spec})
	}
	for _, c := range s.Copies {
		if c.Name == d.Origin {
			c.Spec.Origin = true
		}
	}
}

func countOrigins(s controller.State) (n int) {
	for _, c := range s.Copies {
		if c.Spec.Origin && c.Spec.ImageUID == string(s.Image.UID) {
			n++
		}
	}
	return n
}

func hasReady(s controller.State) bool {
	return slices.ContainsFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool { return c.Status.State == v1alpha1.CopyReady })
}

func randomState(r *rand.Rand) controller.State {
	s := state(image("a", copies(r.IntN(5))))
	if r.IntN(2) == 0 {
		near(r.IntN(2) == 0, fmt.Sprintf("d%d", r.IntN(6)), fmt.Sprintf("d%d", r.IntN(6)))(&s)
	}
	states := []v1alpha1.CopyState{"", v1alpha1.CopyPending, v1alpha1.CopyInProgress, v1alpha1.CopyReady, v1alpha1.CopyFailed, v1alpha1.CopyUnknown, "nonsense"}
	disk := func() string { return fmt.Sprintf("d%d", r.IntN(6)) }
	for i := range r.IntN(6) {
		tags := []string{"", "/fast", "/cordoned", "/unready"}[r.IntN(4)]
		disks(fmt.Sprintf("d%d/n%d/%d%s", i, r.IntN(3), r.IntN(100), tags))(&s)
	}
	for range r.IntN(4) {
		switch r.IntN(3) {
		case 0:
			waiting(fmt.Sprintf("v%d", r.IntN(9)), "a", disk())(&s)
		case 1:
			cloned(fmt.Sprintf("v%d", r.IntN(9)), "a", disk())(&s)
		case 2:
			waiting("other", "b", disk())(&s)
		}
	}
	taken := map[string]bool{}
	for range r.IntN(5) {
		d := disk()
		if taken[d] {
			continue
		}
		taken[d] = true
		copyOf("a", d, states[r.IntN(len(states))])(&s)
		s.Copies[len(s.Copies)-1].Spec.Origin = r.IntN(3) == 0
	}
	if r.IntN(4) == 0 {
		foreignCopy("a", disk())(&s)
	}
	i := s.Image
	i.Spec.Prefetch = r.IntN(3) == 0
	if r.IntN(3) == 0 {
		i.Spec.DiskSelector = []string{"fast"}
	}
	if r.IntN(3) == 0 {
		i.Spec.DiskFileSpecMap = map[string]v1alpha1.DiskFileSpec{disk(): {EvictionRequested: r.IntN(2) == 0}, disk(): {}}
	}
	if r.IntN(4) == 0 {
		deleting(i)
	}
	return s
}

func created(d controller.Decision) string {
	var disks []string
	for _, c := range d.Create {
		if c.Origin {
			c.DiskUUID += "*"
		}
		disks = append(disks, c.DiskUUID)
	}
	return strings.Join(disks, " ")
}

func state(i *v1alpha1.BackingImage, with ...func(*controller.State)) controller.State {
	s := controller.State{Image: i}
	for _, w := range with {
		w(&s)
	}
	return s
}

func image(name string, with ...func(*v1alpha1.BackingImage)) *v1alpha1.BackingImage {
	i := &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}
	for _, w := range with {
		w(i)
	}
	return i
}

func copies(n int) func(*v1alpha1.BackingImage) {
	return func(i *v1alpha1.BackingImage) { i.Spec.MinNumberOfCopies = int32(n) }
}

func deleting(i *v1alpha1.BackingImage) { i.DeletionTimestamp = &metav1.Time{} }

func name(image, disk string) string { return v1alpha1.CopyName("uid-"+image, disk) }

// disks adds disks written as name/node/free[/tag], where the tags cordoned and unready mean what they say, and their nodes.
func disks(specs ...string) func(*controller.State) {
	return func(s *controller.State) {
		for _, spec := range specs {
			f := strings.Split(spec+"/", "/")
			d := &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: f[0]}, Spec: v1alpha1.DiskSpec{NodeName: f[1], Tags: []string{f[3]}}}
			fmt.Sscan(f[2], &d.Status.AvailableBytes)
			allowed := f[3] != "cordoned"
			d.Spec.AllowScheduling = &allowed
			d.Status.Conditions = []metav1.Condition{readyIf(f[3] != "unready")}
			s.Disks = append(s.Disks, d)
			if !slices.ContainsFunc(s.Nodes, func(n *v1alpha1.StorageNode) bool { return n.Name == f[1] }) {
				n := &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: f[1]}}
				n.Status.Conditions = []metav1.Condition{readyIf(true)}
				s.Nodes = append(s.Nodes, n)
			}
		}
	}
}

func readyIf(ok bool) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	if ok {
		c.Status = metav1.ConditionTrue
	}
	return c
}

func waiting(volume, image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		s.Volumes = append(s.Volumes, &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: volume}, Spec: v1alpha1.VolumeSpec{
			DiskUUID: disk, Image: &v1alpha1.VolumeImage{Name: image, UID: "uid-" + image}}})
	}
}

func cloned(volume, image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		waiting(volume, image, disk)(s)
		s.Volumes[len(s.Volumes)-1].Status.State = v1alpha1.VolumeReady
	}
}

func copyOf(image, disk string, is v1alpha1.CopyState) func(*controller.State) {
	return func(s *controller.State) {
		s.Copies = append(s.Copies, &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{Name: name(image, disk)},
			Spec:   v1alpha1.BackingImageCopySpec{Image: image, ImageUID: "uid-" + image, DiskUUID: disk},
			Status: v1alpha1.BackingImageCopyStatus{State: is}})
	}
}

func originOf(image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		copyOf(image, disk, v1alpha1.CopyInProgress)(s)
		s.Copies[len(s.Copies)-1].Spec.Origin = true
	}
}

// near says where the bytes are that the image is made of.
func near(only bool, disks ...string) func(*controller.State) {
	return func(s *controller.State) { s.Near = controller.Near{Disks: disks, Only: only} }
}

// failed makes the last copy one that has failed for good.
func failed(s *controller.State) { s.Copies[len(s.Copies)-1].Status.State = v1alpha1.CopyFailed }

// foreignCopy is a copy of an image that had the name before.
func foreignCopy(image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		s.Copies = append(s.Copies, &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.CopyName("uid-old", disk)},
			Spec: v1alpha1.BackingImageCopySpec{Image: image, ImageUID: "uid-old", DiskUUID: disk}})
	}
}
