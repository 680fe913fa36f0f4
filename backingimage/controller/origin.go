package controller

import (
	"cmp"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// origin names the one copy that shall fetch from the source while none is ready; the others fetch from it. With a ready copy that
// can be reached there is no need of one, and who was one and is not ready stands down. near is the disk it must be on.
func (p *planner) origin(near *v1alpha1.Disk) {
	switch {
	case p.anySound:
		p.demote("")
	case p.failed(), near == nil && p.awaited():
		p.demoteRest()
	case near != nil:
		p.nameOrigin(near.Name)
	default:
		p.chooseOrigin()
	}
}

// chooseOrigin names the best of the copies that can be the origin, or of those that are yet to be made. A copy that is stuck
// on its disk is the last choice: it may come unstuck.
func (p *planner) chooseOrigin() {
	var best, stopgap *placed
	for _, c := range p.copies {
		switch {
		case p.Why[c.Name] != "" || c.foreign: // it goes, or its agent thinks that it is made
		case p.canFetch(c) && (best == nil || p.compareOrigins(c, best) < 0):
			best = c
		case c.standing == stuck && (stopgap == nil || p.compareOrigins(c, stopgap) < 0):
			stopgap = c
		}
	}
	switch {
	case best != nil:
		p.nameOrigin(best.Spec.DiskUUID)
	case len(p.Create) > 0:
		p.nameOrigin(slices.MinFunc(p.Create, p.compareNew).DiskUUID)
	case stopgap != nil:
		p.nameOrigin(stopgap.Spec.DiskUUID)
	default:
		p.demoteRest()
	}
}

// canFetch reports whether a copy can be the origin: its disk can be reached, or, when it is one, could a moment ago.
func (p *planner) canFetch(c *placed) bool {
	return c.standing == coming || c.standing == uncertain && c.Spec.Origin
}

// compareOrigins orders copies, the better origin first: the present one, then where volumes wait.
func (p *planner) compareOrigins(a, b *placed) int {
	return cmp.Or(
		compareBool(a.Spec.Origin, b.Spec.Origin),
		cmp.Compare(len(p.waiting[b.Spec.DiskUUID]), len(p.waiting[a.Spec.DiskUUID])),
		strings.Compare(a.Spec.DiskUUID, b.Spec.DiskUUID))
}

// compareNew orders copies that are yet to be made, the better origin first: on disks that can be reached, then where volumes
// wait, or will.
func (p *planner) compareNew(a, b v1alpha1.BackingImageCopySpec) int {
	reached := func(disk string) bool { _, why, _ := p.away(p.disks[disk]); return why == "" }
	return cmp.Or(
		compareBool(reached(a.DiskUUID), reached(b.DiskUUID)),
		cmp.Compare(len(p.waiting[b.DiskUUID]), len(p.waiting[a.DiskUUID])),
		compareBool(a.DiskUUID == p.first, b.DiskUUID == p.first),
		strings.Compare(a.DiskUUID, b.DiskUUID))
}

// nameOrigin makes the copy on a disk the origin, and no other.
func (p *planner) nameOrigin(disk string) {
	for i := range p.Create {
		p.Create[i].Origin = p.Create[i].DiskUUID == disk
	}
	if c := p.on[disk]; c != nil && !c.Spec.Origin {
		p.Origin = c.Name
	}
	p.demote(disk)
}

// demote takes the mark from every copy that is not ready, except that on a disk.
func (p *planner) demote(except string) {
	for _, c := range p.copies {
		if c.Spec.Origin && c.Status.State != v1alpha1.CopyReady && c.Spec.DiskUUID != except && p.Why[c.Name] == "" {
			p.Demote = append(p.Demote, c.Name)
		}
	}
}

// demoteRest leaves one of several origins: that which failed for good, or else the best.
func (p *planner) demoteRest() {
	var first *placed
	for _, c := range p.copies {
		if c.Spec.Origin && (first == nil || c.standing == failed && first.standing != failed) {
			first = c
		}
	}
	if first != nil {
		p.demote(first.Spec.DiskUUID)
	}
}

// failed reports whether the source was asked and cannot give the image.
func (p *planner) failed() bool {
	return slices.ContainsFunc(p.copies, func(c *placed) bool { return c.standing == failed })
}

// awaited reports whether a copy was ready when it was last heard of, not long ago: it is waited for before the source is asked
// for the image a second time.
func (p *planner) awaited() bool {
	return slices.ContainsFunc(p.copies, func(c *placed) bool { return c.standing == uncertain && c.wasReady() })
}
