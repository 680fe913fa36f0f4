package controller_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/placement"
)

// epoch is when models begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// model is a cluster with one image: the objects, and what is true of machines and disks whatever the objects say. Plans are
// applied to it, its agents act, time passes, and things happen to it.
type model struct {
	tb   testing.TB
	r    *rand.Rand
	s    controller.State
	down map[string]time.Time // nodes that are down, since when
	has  map[string]bool      // copies whose bytes are on their disk, by name
	used map[string]time.Time // when a volume was last made, by disk
	tiny map[string]bool      // disks on which every fetch ends for want of room
	n    int                  // volumes so far
	log  []string             // what happened
}

func newModel(tb testing.TB, seed uint64) *model {
	m := &model{tb: tb, r: rand.New(rand.NewPCG(seed, 11)), down: map[string]time.Time{}, has: map[string]bool{}, used: map[string]time.Time{}, tiny: map[string]bool{}}
	m.s = state(image("a", copies(1+m.r.IntN(3))))
	m.s.Now = epoch
	for i := range 1 + m.r.IntN(6) {
		disks(fmt.Sprintf("d%d/n%d/%d%s", i, m.r.IntN(4), m.r.IntN(100), []string{"", "/fast"}[m.r.IntN(2)]))(&m.s)
		m.tiny[fmt.Sprintf("d%d", i)] = m.r.IntN(8) == 0
	}
	return m
}

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, m.s.Now.Sub(epoch).String()+" "+fmt.Sprintf(format, args...))
}

func (m *model) fail(format string, args ...any) {
	m.tb.Helper()
	for _, line := range m.log {
		m.tb.Log(line)
	}
	m.tb.Fatalf(format, args...)
}

// plan decides, checks and applies.
func (m *model) plan() controller.Decision {
	d := controller.Plan(m.s)
	m.check(d)
	m.apply(d)
	return d
}

func (m *model) apply(d controller.Decision) {
	if acts(d) {
		m.note("decided: create %v delete %v origin %v demote %v refused %v", d.Create, d.Why, d.Origin, d.Demote, d.Refused)
	}
	apply(&m.s, d)
	for _, name := range d.Delete {
		if _, disk, _ := v1alpha1.ParseCopyName(name); m.up(disk) {
			delete(m.has, name) // a node that is down keeps the bytes until it is back
		}
	}
}

// tick lets time pass: who was silent for a minute is said to be.
func (m *model) tick(by time.Duration) {
	m.s.Now = m.s.Now.Add(by)
	for _, n := range m.s.Nodes {
		if since, down := m.down[n.Name]; down && m.s.Now.Sub(since) >= time.Minute {
			m.set(&n.Status.Conditions, false)
		}
	}
}

// pass lets time pass with the controller awake: it plans again when the last plan said so.
func (m *model) pass(by time.Duration) {
	for by > 0 {
		step := by
		if again := m.plan().Again; again > 0 {
			step = min(by, again)
		}
		m.tick(step)
		m.act()
		by -= step
	}
}

func (m *model) set(conditions *[]metav1.Condition, ready bool) {
	c := readyIf(ready)
	c.LastTransitionTime = metav1.NewTime(m.s.Now)
	meta.SetStatusCondition(conditions, c)
}

func (m *model) disk(name string) *v1alpha1.Disk {
	for _, d := range m.s.Disks {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// up reports whether a disk's agent acts.
func (m *model) up(disk string) bool {
	d := m.disk(disk)
	if d == nil || !meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady) {
		return false
	}
	_, down := m.down[d.Spec.NodeName]
	return !down && slices.ContainsFunc(m.s.Nodes, func(n *v1alpha1.StorageNode) bool { return n.Name == d.Spec.NodeName })
}

// act lets the agents report what they have, make what they can, and make the volumes that can be.
func (m *model) act() {
	for _, n := range m.s.Nodes {
		if _, down := m.down[n.Name]; !down {
			m.set(&n.Status.Conditions, true)
		}
	}
	for _, c := range m.s.Copies {
		if m.up(c.Spec.DiskUUID) {
			m.make(c)
		}
	}
	for _, v := range m.s.Volumes {
		if v.Waits() && m.up(v.Spec.DiskUUID) && m.isReady(v.Spec.DiskUUID) {
			v.Status.State = v1alpha1.VolumeReady
			m.used[v.Spec.DiskUUID] = m.s.Now
		}
	}
}

// make is what a copy's agent does next.
func (m *model) make(c *v1alpha1.BackingImageCopy) {
	s := &c.Status
	turn := func(to v1alpha1.CopyState) {
		if s.State != to {
			s.State, s.LastStateTransitionTime = to, metav1.NewTime(m.s.Now)
		}
	}
	peer := slices.ContainsFunc(m.s.Copies, func(o *v1alpha1.BackingImageCopy) bool { return m.has[o.Name] && m.up(o.Spec.DiskUUID) })
	switch {
	case m.has[c.Name]:
		turn(v1alpha1.CopyReady)
		s.ContentDigest, m.s.Image.Status.ContentDigest = "digest", "digest"
	case m.tiny[c.Spec.DiskUUID]:
		turn(v1alpha1.CopyFailed)
		s.Reason, s.NextTryTime = backingimage.Full.String(), &metav1.Time{Time: m.s.Now.Add(time.Minute)}
	case s.State == v1alpha1.CopyInProgress && (peer || c.Spec.Origin):
		m.has[c.Name] = true
	case peer || c.Spec.Origin:
		turn(v1alpha1.CopyInProgress)
	default:
		turn(v1alpha1.CopyPending)
	}
}

func (m *model) isReady(disk string) bool {
	return slices.ContainsFunc(m.s.Copies, func(c *v1alpha1.BackingImageCopy) bool {
		return c.Spec.DiskUUID == disk && c.Status.State == v1alpha1.CopyReady
	})
}

// happen makes one thing happen.
func (m *model) happen() {
	disk := m.s.Disks[m.r.IntN(len(m.s.Disks))]
	node := m.s.Nodes[m.r.IntN(len(m.s.Nodes))]
	spec := &m.s.Image.Spec
	switch m.r.IntN(14) {
	case 0:
		m.down[node.Name] = m.s.Now
		m.note("node %s dies", node.Name)
	case 1:
		m.revive()
	case 2:
		ready := m.r.IntN(3) > 0
		m.set(&disk.Status.Conditions, ready)
		m.note("disk %s ready: %t", disk.Name, ready)
	case 3, 4:
		m.n++
		waiting(fmt.Sprintf("v%d", m.n), "a", disk.Name)(&m.s)
		m.s.Volumes[len(m.s.Volumes)-1].CreationTimestamp = metav1.NewTime(m.s.Now)
		m.note("volume v%d on %s", m.n, disk.Name)
	case 5:
		if len(m.s.Volumes) > 0 {
			m.s.Volumes = m.s.Volumes[1:]
			m.note("the oldest volume goes")
		}
	case 6:
		spec.MinNumberOfCopies = int32(1 + m.r.IntN(3))
		m.note("minimum %d", spec.MinNumberOfCopies)
	case 7:
		spec.DiskSelector = [][]string{nil, {"fast"}}[m.r.IntN(2)]
		m.note("selector %v", spec.DiskSelector)
	case 8:
		disk.Spec.EvictionRequested = m.r.IntN(2) == 0
		m.note("disk %s evicts: %t", disk.Name, disk.Spec.EvictionRequested)
	case 9:
		node.Status.Cordoned = m.r.IntN(2) == 0
		m.note("node %s cordoned: %t", node.Name, node.Status.Cordoned)
	case 10:
		spec.DiskFileSpecMap = map[string]v1alpha1.DiskFileSpec{disk.Name: {EvictionRequested: m.r.IntN(2) == 0}}
		m.note("map %v", spec.DiskFileSpecMap)
	case 11:
		spec.Prefetch = m.r.IntN(3) == 0
		m.note("prefetch %t", spec.Prefetch)
	case 12:
		for _, c := range m.s.Copies {
			c.Spec.CleanupRequested = c.Spec.DiskUUID == disk.Name
		}
		m.note("cleanup of disk %s", disk.Name)
	case 13:
		if len(m.s.Disks) > 1 && m.r.IntN(3) == 0 {
			m.s.Disks = slices.DeleteFunc(m.s.Disks, func(d *v1alpha1.Disk) bool { return d == disk })
			m.note("disk %s is removed", disk.Name)
		}
	}
}

// revive brings every node back. Its agent removes what nobody asks for.
func (m *model) revive() {
	m.note("all nodes are back")
	clear(m.down)
	for name := range m.has {
		if !slices.ContainsFunc(m.s.Copies, func(c *v1alpha1.BackingImageCopy) bool { return c.Name == name }) {
			delete(m.has, name)
		}
	}
}

// check holds a decision against what must never be, by what is true and not by what the plan thinks.
func (m *model) check(d controller.Decision) {
	m.tb.Helper()
	checkDecision(m.tb, m.s, d)
	safe, lost := 0, []string{}
	for _, c := range m.s.Copies {
		leaves := slices.Contains(d.Delete, c.Name)
		told := c.Status.State == v1alpha1.CopyReady && m.told(c.Spec.DiskUUID)
		if told && !leaves {
			safe++
		}
		if leaves && m.has[c.Name] {
			lost = append(lost, c.Name)
		}
		last := m.used[c.Spec.DiskUUID]
		if leaves && told && !last.IsZero() && m.s.Now.Sub(last) < time.Hour && slices.Contains([]string{"nothing wants it, and it was not used for 1h0m0s"}, d.Why[c.Name]) {
			m.fail("cleans %s up, which was used %s ago", c.Name, m.s.Now.Sub(last))
		}
	}
	if len(lost) > 0 && safe < int(m.s.Image.Spec.MinNumberOfCopies) {
		m.fail("removes %v (%v) and leaves %d ready copies of %d", lost, d.Why, safe, m.s.Image.Spec.MinNumberOfCopies)
	}
}

// told reports whether a disk can be reached for all that was told.
func (m *model) told(disk string) bool {
	d := m.disk(disk)
	if d == nil || !meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady) {
		return false
	}
	return slices.ContainsFunc(m.s.Nodes, func(n *v1alpha1.StorageNode) bool {
		return n.Name == d.Spec.NodeName && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady)
	})
}

// rest lets plans and agents go on, with nothing else happening, until nothing changes any more.
func (m *model) rest() controller.Decision {
	m.tb.Helper()
	quiet := 0
	for range 200 {
		m.act()
		d := m.plan()
		if quiet++; acts(d) {
			quiet = 0
		}
		if quiet > 8 {
			return d
		}
		m.tick(max(d.Again, 10*time.Second))
	}
	m.fail("does not come to rest: %+v", controller.Plan(m.s))
	return controller.Decision{}
}

// checkRest checks what must be true of an image with which nothing happens any more.
func (m *model) checkRest(d controller.Decision) {
	m.tb.Helper()
	spec := m.s.Image.Spec
	ready, surplus := 0, 0
	for _, c := range m.s.Copies {
		on := m.disk(c.Spec.DiskUUID)
		proper := on != nil && m.proper(on)
		if proper && c.Status.State == v1alpha1.CopyReady && m.told(on.Name) {
			ready++
		}
		if on != nil && m.told(on.Name) && !m.tiny[on.Name] && !m.waits(on.Name) {
			surplus++
		}
		if on != nil && !proper && d.Short == "" && !m.waits(on.Name) && (m.evicts(on) || m.cordoned(on) && m.told(on.Name) && !spec.Prefetch && spec.DiskFileSpecMap == nil) {
			m.fail("rests with copy %s on a disk that evicts", c.Name)
		}
		if c.Spec.CleanupRequested {
			m.fail("rests with an unanswered cleanup of %s", c.Name)
		}
	}
	if d.Short == "" && ready < int(spec.MinNumberOfCopies) {
		m.fail("rests with %d of %d copies where they should be, and does not say why", ready, spec.MinNumberOfCopies)
	}
	if d.Short == "" && !spec.Prefetch && spec.DiskFileSpecMap == nil && surplus > int(spec.MinNumberOfCopies) {
		m.fail("rests with %d copies that can be reached, %d are wanted", surplus, spec.MinNumberOfCopies)
	}
}

// proper reports whether a copy on a disk counts towards the image's minimum.
func (m *model) proper(d *v1alpha1.Disk) bool {
	return placement.HasTags(d.Spec.Tags, m.s.Image.Spec.DiskSelector) && !m.evicts(d) && !m.cordoned(d)
}

func (m *model) evicts(d *v1alpha1.Disk) bool {
	return d.Spec.EvictionRequested || m.s.Image.Spec.DiskFileSpecMap[d.Name].EvictionRequested
}

func (m *model) cordoned(d *v1alpha1.Disk) bool {
	return slices.ContainsFunc(m.s.Nodes, func(n *v1alpha1.StorageNode) bool { return n.Name == d.Spec.NodeName && n.Status.Cordoned })
}

func (m *model) waits(disk string) bool {
	return slices.ContainsFunc(m.s.Volumes, func(v *v1alpha1.Volume) bool { return v.Waits() && v.Spec.DiskUUID == disk })
}

// live runs a model through what happens and to its rest.
func live(tb testing.TB, seed uint64) {
	m := newModel(tb, seed)
	for range 4 + m.r.IntN(12) {
		m.happen()
		for range 1 + m.r.IntN(3) { // nobody sleeps for long
			m.act()
			m.plan()
		}
		m.pass(time.Duration(m.r.Int64N(int64([]time.Duration{time.Second, time.Minute, 10 * time.Minute, 2 * time.Hour}[m.r.IntN(4)]))))
	}
	m.checkRest(m.rest())
}
