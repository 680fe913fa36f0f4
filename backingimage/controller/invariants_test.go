package controller_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
)

// cases is how many random cases a property is held against: 10⁴, fewer with -short, or what PLINTH_PLAN_CASES says.
func cases(tb testing.TB) uint64 {
	said := os.Getenv("PLINTH_PLAN_CASES")
	switch {
	case said == "" && testing.Short():
		return 500
	case said == "":
		return 10_000
	}
	n, err := strconv.ParseUint(said, 10, 64)
	if err != nil {
		tb.Fatalf("PLINTH_PLAN_CASES: %v", err)
	}
	return n
}

// TestPlanInvariants plans random and contradictory states to rest, with no agent that acts.
func TestPlanInvariants(t *testing.T) {
	for seed := range cases(t) {
		checkInvariants(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// TestPlanConverges runs clusters in which nodes die and return, disks fill, users change their minds and time passes.
func TestPlanConverges(t *testing.T) {
	var seed uint64
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	for seed = range cases(t) {
		live(t, seed)
	}
}

func FuzzPlan(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		checkInvariants(t, seed)
		live(t, seed)
	})
}

func checkInvariants(t *testing.T, seed uint64) {
	s := randomState(rand.New(rand.NewPCG(seed, 7)))
	for round := range 6 {
		d := controller.Plan(s)
		checkDecision(t, s, d)
		if round > 3 && acts(d) {
			t.Errorf("round %d still acts: %+v", round, d)
		}
		apply(&s, d)
	}
	if s.Image.DeletionTimestamp != nil {
		return
	}
	if origins := countOrigins(s); origins > 1 {
		t.Errorf("%d copies that are not ready are the origin", origins)
	}
	if d := controller.Plan(s); d.Ready > 0 && countOrigins(s) > 0 {
		t.Errorf("a copy is ready, and another one, which is not, is the origin")
	} else if d.Ready == 0 && countOrigins(s) == 0 && fetchable(s) {
		t.Errorf("copies can be made, none is ready, and none is the origin: %+v", s.Copies)
	}
}

// acts reports whether a decision changes what is there.
func acts(d controller.Decision) bool {
	return len(d.Create)+len(d.Delete)+len(d.Demote)+len(d.Refused) > 0 || d.Origin != ""
}

// checkDecision checks what holds of every decision.
func checkDecision(tb testing.TB, s controller.State, d controller.Decision) {
	tb.Helper()
	waiting := waitingOn(s)
	ready, leave := 0, 0
	for _, c := range s.Copies {
		mine, goes := c.Spec.ImageUID == string(s.Image.UID) && c.Name == v1alpha1.CopyName(c.Spec.ImageUID, c.Spec.DiskUUID), slices.Contains(d.Delete, c.Name)
		switch {
		case other(s, c):
		case mine && goes && waiting[c.Spec.DiskUUID] && !(c.Spec.Origin && c.Final()):
			tb.Errorf("deletes copy %s, which a volume waits for", c.Name)
		case mine && goes && c.Status.State == v1alpha1.CopyReady:
			leave++
		case mine && c.Status.State == v1alpha1.CopyReady:
			ready++
		}
	}
	if !d.Done && leave > 0 && ready < max(int(s.Image.Spec.MinNumberOfCopies), 1) {
		tb.Errorf("deletes %d ready copies and leaves %d of %d", leave, ready, s.Image.Spec.MinNumberOfCopies)
	}
	if len(d.Safe) > 0 && len(d.Safe) < max(int(s.Image.Spec.MinNumberOfCopies), 1) {
		tb.Errorf("relies on %v, which are fewer than %d", d.Safe, s.Image.Spec.MinNumberOfCopies)
	}
	checkMade(tb, s, d, waiting)
	checkOrigin(tb, s, d)
	if d.Done && len(waiting) > 0 {
		tb.Errorf("lets the image go while volumes wait")
	}
}

// other reports whether a copy is ready and has another content than the image.
func other(s controller.State, c *v1alpha1.BackingImageCopy) bool {
	is, wants := c.Status.ContentDigest, s.Image.Status.ContentDigest
	return is != "" && wants != "" && is != wants
}

// checkMade checks the copies that a decision makes.
func checkMade(tb testing.TB, s controller.State, d controller.Decision, waiting map[string]bool) {
	tb.Helper()
	seen := map[string]bool{}
	for _, c := range d.Create {
		if seen[c.DiskUUID] {
			tb.Errorf("two copies on disk %s", c.DiskUUID)
		}
		seen[c.DiskUUID] = true
	}
	for disk := range waiting {
		has := seen[disk] || slices.ContainsFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool {
			return c.Spec.DiskUUID == disk && c.Spec.ImageUID == string(s.Image.UID)
		})
		known := slices.ContainsFunc(s.Disks, func(d *v1alpha1.Disk) bool { return d.Name == disk })
		if known && !has {
			tb.Errorf("a volume waits on disk %s and gets no copy there", disk)
		}
	}
}

// waitingOn are the disks on which volumes wait for the image.
func waitingOn(s controller.State) map[string]bool {
	waiting := map[string]bool{}
	for _, v := range s.Volumes {
		if v.Waits() && v.Spec.Image.UID == string(s.Image.UID) {
			waiting[v.Spec.DiskUUID] = true
		}
	}
	return waiting
}

// checkOrigin checks that an export whose disk is known and which is not made, and has not failed, is made on that disk.
func checkOrigin(tb testing.TB, s controller.State, d controller.Decision) {
	tb.Helper()
	known := slices.ContainsFunc(s.Disks, func(d *v1alpha1.Disk) bool { return slices.Contains(s.Near.Disks, d.Name) })
	over := slices.ContainsFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool {
		return c.Spec.ImageUID == string(s.Image.UID) && (c.Status.State == v1alpha1.CopyReady || c.Status.ContentDigest != "" || c.Spec.Origin && c.Final())
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
		tb.Errorf("an export has no origin on its volume's disk %v: %+v", s.Near.Disks, d)
	}
}

// apply does to the objects what a decision says.
func apply(s *controller.State, d controller.Decision) {
	s.Copies = slices.DeleteFunc(s.Copies, func(c *v1alpha1.BackingImageCopy) bool { return slices.Contains(d.Delete, c.Name) })
	for _, spec := range d.Create {
		s.Copies = append(s.Copies, &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{
			Name: v1alpha1.CopyName(spec.ImageUID, spec.DiskUUID), CreationTimestamp: metav1.NewTime(s.Now)}, Spec: spec})
	}
	for _, c := range s.Copies {
		if slices.Contains(d.Demote, c.Name) {
			c.Spec.Origin = false
		}
		if c.Name == d.Origin {
			c.Spec.Origin = true
		}
		for _, m := range d.Moved {
			if m.Copy == c.Name {
				c.Spec.NodeName = m.NodeName
			}
		}
		for _, u := range d.Used {
			if u.Copy == c.Name {
				c.Status.LastUsedTime = &metav1.Time{Time: u.At}
			}
		}
		if has(d.Unknown, c.Name) {
			c.Status.State, c.Status.LastStateTransitionTime = v1alpha1.CopyUnknown, metav1.NewTime(s.Now)
		}
		if has(d.Refused, c.Name) {
			c.Spec.CleanupRequested = false
		}
	}
}

func has(notes []controller.Note, copy string) bool {
	return slices.ContainsFunc(notes, func(n controller.Note) bool { return n.Copy == copy })
}

// countOrigins counts the origins among the copies that are not ready.
func countOrigins(s controller.State) (n int) {
	for _, c := range s.Copies {
		if c.Spec.Origin && c.Spec.ImageUID == string(s.Image.UID) && c.Status.State != v1alpha1.CopyReady {
			n++
		}
	}
	return n
}

// fetchable reports whether a copy can fetch, and none has failed for good or is waited for.
func fetchable(s controller.State) bool {
	can := false
	for _, c := range s.Copies {
		reached := slices.ContainsFunc(s.Disks, func(d *v1alpha1.Disk) bool {
			return d.Name == c.Spec.DiskUUID && d.Status.Conditions[0].Status == metav1.ConditionTrue
		})
		known := c.Status.State == v1alpha1.CopyPending || c.Status.State == v1alpha1.CopyInProgress || c.Status.State == ""
		if c.Spec.ImageUID != string(s.Image.UID) || c.Status.State == v1alpha1.CopyReady {
			continue
		}
		if c.Final() || c.Status.ContentDigest != "" {
			return false
		}
		can = can || reached && known
	}
	return can
}

func randomState(r *rand.Rand) controller.State {
	s := state(image("a", copies(r.IntN(5))))
	s.Now = epoch
	if r.IntN(2) == 0 {
		near(r.IntN(2) == 0, fmt.Sprintf("d%d", r.IntN(6)), fmt.Sprintf("d%d", r.IntN(6)))(&s)
	}
	disk := func() string { return fmt.Sprintf("d%d", r.IntN(6)) }
	for i := range r.IntN(6) {
		tags := []string{"", "/fast", "/cordoned", "/unready"}[r.IntN(4)]
		disks(fmt.Sprintf("d%d/n%d/%d%s", i, r.IntN(3), r.IntN(100), tags))(&s)
		s.Disks[i].Spec.EvictionRequested = r.IntN(5) == 0
		s.Disks[i].Status.Conditions[0].LastTransitionTime = metav1.NewTime(epoch.Add(-time.Duration(r.IntN(600)) * time.Second))
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
	randomNodes(r, &s)
	randomCopies(r, &s, disk)
	randomWishes(r, s.Image, disk)
	return s
}

func randomNodes(r *rand.Rand, s *controller.State) {
	for _, n := range s.Nodes {
		n.Status.Cordoned, n.Spec.EvictionRequested = r.IntN(6) == 0, r.IntN(6) == 0
		n.Status.Conditions = []metav1.Condition{readyIf(r.IntN(4) > 0)}
		n.Status.Conditions[0].LastTransitionTime = metav1.NewTime(epoch.Add(-time.Duration(r.IntN(600)) * time.Second))
	}
	if len(s.Nodes) > 0 && r.IntN(4) == 0 {
		s.Nodes = s.Nodes[1:]
	}
}

func randomCopies(r *rand.Rand, s *controller.State, disk func() string) {
	states := []v1alpha1.CopyState{"", v1alpha1.CopyPending, v1alpha1.CopyInProgress, v1alpha1.CopyReady, v1alpha1.CopyReady, v1alpha1.CopyFailed, v1alpha1.CopyFailed, v1alpha1.CopyUnknown, "nonsense"}
	taken := map[string]bool{}
	for range r.IntN(5) {
		d := disk()
		if taken[d] {
			continue
		}
		taken[d] = true
		copyOf("a", d, states[r.IntN(len(states))])(s)
		c := s.Copies[len(s.Copies)-1]
		c.Spec.Origin, c.Spec.CleanupRequested = r.IntN(3) == 0, r.IntN(4) == 0
		c.Status.LastStateTransitionTime = metav1.NewTime(epoch.Add(time.Duration(r.IntN(20000)-18000) * time.Second))
		c.Status.Reason = []string{"", backingimage.Full.String(), backingimage.Internal.String()}[r.IntN(3)]
		c.Status.Attempts = int32(r.IntN(9))
		c.Status.ContentDigest = []string{"", "", "digest", "other"}[r.IntN(4)]
		if r.IntN(2) == 0 {
			c.Status.NextTryTime = &metav1.Time{Time: epoch}
		}
		if r.IntN(4) == 0 {
			c.Name = "nonsense"
		}
	}
	if r.IntN(4) == 0 {
		foreignCopy("a", disk())(s)
	}
}

func randomWishes(r *rand.Rand, i *v1alpha1.BackingImage, disk func() string) {
	i.Spec.SourceType = []v1alpha1.SourceType{v1alpha1.SourceDownload, v1alpha1.SourceUpload, v1alpha1.SourceClone}[r.IntN(3)]
	i.Status.ContentDigest = []string{"", "digest"}[r.IntN(2)]
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
}
