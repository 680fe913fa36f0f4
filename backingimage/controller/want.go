package controller

import (
	"cmp"
	"strings"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// want decides which copies stay, and makes those that are missing: near the bytes that the image is made of, where volumes
// wait, where users ask for one by disk, everywhere for prefetch, and on the best disks until there are enough.
func (p *planner) want(near *v1alpha1.Disk) {
	held, wanted := p.pin(near)
	keepers := p.keepers(p.minimum - held)
	held, wanted = held+keepers, wanted+keepers
	if p.stranded() == "" || p.Image.Spec.SourceType == v1alpha1.SourceUpload { // the same file may be uploaded again
		chosen := p.choose(p.minimum - held)
		held, wanted = held+chosen, wanted+chosen
	}
	switch {
	case held < p.minimum:
		p.Short = p.shortage(held)
	case p.Image.Spec.Prefetch && p.full != "":
		p.Short = "prefetch cannot have a copy on every disk that the selectors match: no room on " + p.full
	}
	if p.Short != "" {
		p.again(shortRetry) // room comes back without a change that would wake us
	}
	p.Wanted = max(p.minimum, wanted)
}

// pin keeps and makes the copies that are wanted on certain disks. It returns how many of them count towards the
// minimum, and how many there are.
func (p *planner) pin(near *v1alpha1.Disk) (held, wanted int) {
	eligible := map[string]bool{}
	if p.Image.Spec.Prefetch {
		for _, d := range p.eligible {
			eligible[d.Name] = true
		}
	}
	for _, c := range p.copies { // whatever became of its disk
		c.pinned = len(p.waiting[c.Spec.DiskUUID]) > 0
		c.keep = c.pinned
	}
	for _, d := range p.State.Disks {
		c := p.on[d.Name]
		isNear := near != nil && d.Name == near.Name
		if !isNear && !p.pins(d, eligible[d.Name] || c != nil) {
			continue
		}
		wanted++
		if c == nil {
			p.make(d)
		} else {
			c.pinned, c.keep = true, true
		}
		if isNear || c != nil && c.counts() || c == nil && !p.avoids(d) && p.matches(d) {
			held++
		}
	}
	return held, wanted
}

// pins reports whether a copy is wanted on this very disk. A volume that waits outranks an eviction, an eviction the rest.
// allowed is whether prefetch may use the disk, as far as room and readiness go.
func (p *planner) pins(d *v1alpha1.Disk, allowed bool) bool {
	if len(p.waiting[d.Name]) > 0 {
		return true
	}
	if p.evicts(d, d.Name) != "" || p.cordoned(d) != "" && p.on[d.Name] == nil || p.Image.DeletionTimestamp != nil {
		return false
	}
	_, listed := p.Image.Spec.DiskFileSpecMap[d.Name]
	return listed || p.Image.Spec.Prefetch && allowed && p.matches(d)
}

// keepers keeps the best of the copies that are not pinned, up to need, and returns how many.
func (p *planner) keepers(need int) (kept int) {
	if need <= 0 {
		return 0
	}
	perNode := p.perNode()
	for ; kept < need; kept++ {
		var best *placed
		for _, c := range p.copies {
			if !c.keep && c.counts() && (best == nil || p.compareKeepers(c, best, perNode) < 0) {
				best = c
			}
		}
		if best == nil {
			break
		}
		best.keep = true
		perNode[nodeOf(best)]++
	}
	return kept
}

// compareKeepers orders copies by what they are worth, the better first: ready ones, those that nobody asked to remove, those
// on nodes with the fewest, the last used.
func (p *planner) compareKeepers(a, b *placed, perNode map[string]int) int {
	return cmp.Or(
		cmp.Compare(a.standing, b.standing),
		compareBool(b.Spec.CleanupRequested, a.Spec.CleanupRequested),
		cmp.Compare(perNode[nodeOf(a)], perNode[nodeOf(b)]),
		p.lastUse(b).Compare(p.lastUse(a)),
		strings.Compare(a.Spec.DiskUUID, b.Spec.DiskUUID))
}

// perNode counts the copies that stay or are made, by node.
func (p *planner) perNode() map[string]int {
	perNode := map[string]int{}
	for _, c := range p.copies {
		if c.keep {
			perNode[nodeOf(c)]++
		}
	}
	for _, c := range p.Create {
		perNode[c.NodeName]++
	}
	return perNode
}

func nodeOf(c *placed) string {
	if c.disk == nil {
		return c.Spec.NodeName
	}
	return c.disk.Spec.NodeName
}

// make makes a copy on a disk.
func (p *planner) make(d *v1alpha1.Disk) {
	p.Create = append(p.Create, v1alpha1.BackingImageCopySpec{
		Image: p.Image.Name, ImageUID: string(p.Image.UID), DiskUUID: d.Name, NodeName: d.Spec.NodeName,
	})
}

// compareBool orders true before false.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
