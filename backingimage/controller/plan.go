// Package controller holds the cluster's loops for images. What copies an image shall have, and which may go, is decided
// by Plan, a pure function; the loop around it (Images) reads the caches, applies the decision and reports it in status. A
// second loop (Nodes) listens for the agents' heartbeats and says which nodes are silent.
//
// A decision is made in steps, one file each: where every copy stands (standing.go), which copies are wanted and where the
// missing ones are made (want.go, place.go), which go (leave.go), which one fetches from the source (origin.go), and what is
// lost for good (lost.go).
//
// The rules that hold whatever the objects say: the last ready copy is never removed while the image exists, nor are copies
// when fewer than wanted would be ready elsewhere; a copy that a volume waits for stays; what is not known is not lost, for a
// while.
package controller

import (
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// State is all that a decision about one image depends on. Copies, disks, nodes and volumes may be missing, stale or
// contradictory; those that do not concern the image are passed over.
type State struct {
	Image    *v1alpha1.BackingImage
	Near     Near // where the bytes are that the image is made of
	Copies   []*v1alpha1.BackingImageCopy
	Disks    []*v1alpha1.Disk
	Nodes    []*v1alpha1.StorageNode
	Volumes  []*v1alpha1.Volume
	Promised map[string]int64 // bytes taken of each disk, by its UUID
	Settings Settings
	Now      time.Time
}

// Decision is what shall be done about one image, and what is true of it.
type Decision struct {
	Create  []v1alpha1.BackingImageCopySpec // copies to make, sorted by disk
	Delete  []string                        // names of copies that shall go, sorted
	Origin  string                          // name of the copy to mark as origin; "" when nothing is to be marked
	Demote  []string                        // names of copies that are marked as origin and shall not be, sorted
	Moved   []Moved                         // copies whose disk is on another node now, sorted by name
	Unknown []Note                          // copies of which nothing is known for now, and why, sorted by name
	Used    []Used                          // copies whose last use shall be written down, sorted by name
	Refused []Note                          // copies whose cleanup was asked for and cannot be, and why, sorted by name
	Why     map[string]string               // why copies go, by name
	Safe    []string                        // names of the ready copies that stay, when what goes relies on them

	Wanted int           // how many ready copies make the image healthy
	Ready  int           // how many copies are ready and can be reached
	Short  string        // why fewer copies than wanted can be had; "" when they can
	Lost   string        // why the image cannot come back by itself; "" when it can
	Done   bool          // the image is being deleted and nothing holds it
	Held   []string      // volumes that hold an image that is being deleted, sorted
	Again  time.Duration // when to plan again though nothing changed; 0: never

	shown map[string]v1alpha1.DiskFileStatus // each copy as the image reports it, by disk
	best  *placed                            // the copy that says most about the image; nil when there is none
}

// Note is a sentence about a copy.
type Note struct{ Copy, Message string }

// Moved is a copy whose disk is on another node than the copy says.
type Moved struct{ Copy, NodeName string }

// Used is a copy's last use.
type Used struct {
	Copy string
	At   time.Time
}

// Plan decides. It is total: any State yields a Decision that, applied and planned again, comes to rest.
func Plan(s State) Decision {
	p := newPlanner(s)
	p.collect()
	if s.Image.DeletionTimestamp != nil && len(p.waiting) == 0 {
		return p.dissolve()
	}
	p.note()
	p.findEligible()
	near := p.originDisk()
	p.want(near)
	p.leave()
	p.origin(near)
	p.Lost = p.lost()
	p.report()
	p.sort()
	return p.Decision
}

// planner is a decision in the making.
type planner struct {
	State
	Decision
	minimum  int // of copies that stay where the selectors say
	disks    map[string]*v1alpha1.Disk
	nodes    map[string]*v1alpha1.StorageNode
	waiting  map[string][]string  // volumes that wait for the image, by disk
	made     map[string]time.Time // when the last volume was made from the image, by disk
	copies   []*placed            // sorted by disk
	on       map[string]*placed   // by disk
	anySound bool                 // whether a copy is ready and can be reached
	eligible []*v1alpha1.Disk     // that may get a copy by our own choice
	first    string               // disk that the first copy shall be on, if it may; "" when any will do, or there is a copy
	full     string               // what room a disk lacks that would be eligible else
}

func newPlanner(s State) *planner {
	s.Settings = s.Settings.WithDefaults()
	p := &planner{
		State: s, minimum: int(max(s.Image.Spec.MinNumberOfCopies, 1)),
		disks: make(map[string]*v1alpha1.Disk, len(s.Disks)), nodes: make(map[string]*v1alpha1.StorageNode, len(s.Nodes)),
		waiting: map[string][]string{}, made: map[string]time.Time{}, on: make(map[string]*placed, len(s.Copies)),
	}
	p.Why = map[string]string{}
	if s.Image.DeletionTimestamp != nil {
		p.minimum = 0
	}
	for _, n := range s.Nodes {
		p.nodes[n.Name] = n
	}
	for _, d := range s.Disks {
		p.disks[d.Name] = d
	}
	for _, v := range s.Volumes {
		p.count(v)
	}
	for _, n := range s.Nodes {
		p.countReaders(n)
	}
	return p
}

// count takes a volume of the image into account: one that waits wants a copy on its disk, one that was made used it.
func (p *planner) count(v *v1alpha1.Volume) {
	if v.Spec.Image == nil || v.Spec.Image.UID != string(p.Image.UID) || v.Spec.SourceVolume != "" {
		return
	}
	disk := v.Spec.DiskUUID
	if v.Waits() || v.Spec.ReadOnlyMany && v.DeletionTimestamp == nil { // the next node to read it needs the image
		p.waiting[disk] = append(p.waiting[disk], v.Name)
	}
	if at := v.CreationTimestamp.Time; at.After(p.made[disk]) {
		p.made[disk] = at
	}
}

// countReaders takes the volumes into account that are to be read on a node and wait for a copy there.
func (p *planner) countReaders(n *v1alpha1.StorageNode) {
	for _, w := range n.Status.Waiting {
		d := p.disks[w.DiskUUID]
		if w.ImageUID == string(p.Image.UID) && d != nil && d.Spec.NodeName == n.Name && !slices.Contains(p.waiting[d.Name], w.Volume) {
			p.waiting[d.Name] = append(p.waiting[d.Name], w.Volume)
		}
	}
}

// collect finds the image's copies. Those of an image that had the name before go, and those whose name is not what their
// image and disk make it: an agent would take them for another's.
func (p *planner) collect() {
	for _, c := range p.State.Copies {
		switch {
		case c.Spec.Image != p.Image.Name:
		case c.Spec.ImageUID != string(p.Image.UID):
			p.delete(c.Name, "it is of an image that had the name before")
		case c.Name != v1alpha1.CopyName(c.Spec.ImageUID, c.Spec.DiskUUID):
			p.delete(c.Name, "its name is not that of its image and disk")
		case c.DeletionTimestamp == nil:
			on := &placed{BackingImageCopy: c}
			p.copies, p.on[c.Spec.DiskUUID] = append(p.copies, on), on
		}
	}
	slices.SortFunc(p.copies, func(a, b *placed) int { return strings.Compare(a.Spec.DiskUUID, b.Spec.DiskUUID) })
	if len(p.copies) == 0 {
		p.first = p.Image.Annotations[v1alpha1.FirstDiskAnnotation]
	}
}

func (p *planner) delete(copy, why string) {
	p.Delete = append(p.Delete, copy)
	p.Why[copy] = why
}

// dissolve lets an image go that nothing holds. No copy is waited for: an agent that is away removes what it has when it is back.
func (p *planner) dissolve() Decision {
	d := Decision{Done: true, Delete: p.Delete, Why: p.Why}
	for _, c := range p.copies {
		d.Delete = append(d.Delete, c.Name)
		d.Why[c.Name] = "its image is being deleted"
	}
	slices.Sort(d.Delete)
	return d
}

// again asks to be called after a while, unless something asked for less.
func (p *planner) again(after time.Duration) {
	after = max(after, time.Second)
	if p.Again == 0 || after < p.Again {
		p.Again = after
	}
}

// sort puts the parts of the decision in their order.
func (p *planner) sort() {
	slices.Sort(p.Delete)
	slices.Sort(p.Demote)
	slices.SortFunc(p.Create, func(a, b v1alpha1.BackingImageCopySpec) int { return strings.Compare(a.DiskUUID, b.DiskUUID) })
	for _, names := range p.waiting {
		if p.Image.DeletionTimestamp != nil {
			p.Held = append(p.Held, names...)
		}
	}
	slices.Sort(p.Held)
}

// latest returns the last of the given times that is not in the future: a clock elsewhere may be ahead.
func (p *planner) latest(times ...*metav1.Time) time.Time {
	var last time.Time
	for _, t := range times {
		if t != nil && t.After(last) && !t.After(p.Now) {
			last = t.Time
		}
	}
	return last
}
