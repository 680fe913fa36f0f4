package controller

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/placement"
)

// standing is what a copy is worth to its image now.
type standing int

const (
	sound     standing = iota // ready, and its disk can be reached
	coming                    // being made, or about to be, or to be tried again
	uncertain                 // cannot be reached, not for long yet: counts as there
	failed                    // the origin, whose fetch failed for good: the image has, wherever its copies are
	stuck                     // no use where it is, and will not be: it failed for reasons of its disk, or has another content
	lost                      // cannot be reached for too long: counts as gone, and is taken back when it can be reached
	gone                      // its disk or node was removed from the cluster: nobody will ever report it
)

// placed is a copy, where it is, and what became of it in the decision.
type placed struct {
	*v1alpha1.BackingImageCopy
	disk      *v1alpha1.Disk // nil when it is not registered
	standing  standing
	away      string // why it cannot be reached; "" when it can
	since     time.Time
	evicting  string // who wants it away from where it is; "" when nobody does
	cordoned  string // why its node may be away soon: it does not count, but has no need to go
	misplaced bool   // the image's selectors do not allow its disk
	foreign   bool   // its content is not the image's: the source changed between two fetches
	pinned    bool   // wanted on this disk, not on just any
	keep      bool   // wanted
	leaving   string // why it is to go and has not yet; "" when it stays
}

// counts reports whether a copy is one of those that the image's minimum asks for.
func (c *placed) counts() bool {
	return c.standing <= failed && c.evicting == "" && c.cordoned == "" && !c.misplaced
}

// wasReady reports whether a copy was ready when it was last heard of.
func (c *placed) wasReady() bool {
	return c.Status.State == v1alpha1.CopyReady || c.Status.ContentDigest != ""
}

// damaged reports whether a copy was ready, and bytes of it are known to have rotted since. It is coming while its agent repairs it,
// and what is left of it may be all that there is.
func (c *placed) damaged() bool { return len(c.Status.BadChunks) > 0 && !c.foreign }

// note finds where each copy stands, and what shall be written down of that.
func (p *planner) note() {
	for _, c := range p.copies {
		c.disk = p.disks[c.Spec.DiskUUID]
		c.evicting, c.cordoned = p.evicts(c.disk, c.Spec.DiskUUID), p.cordoned(c.disk)
		c.misplaced = c.disk == nil || !p.matches(c.disk)
		c.foreign = c.wasReady() && c.Status.ContentDigest != "" && p.Image.Status.ContentDigest != "" && c.Status.ContentDigest != p.Image.Status.ContentDigest
		p.stand(c)
		if c.disk != nil && c.disk.Spec.NodeName != c.Spec.NodeName {
			p.Moved = append(p.Moved, Moved{c.Name, c.disk.Spec.NodeName})
		}
		if c.away != "" && c.Status.State != v1alpha1.CopyUnknown && !c.Final() {
			p.Unknown = append(p.Unknown, Note{c.Name, c.away})
		}
		p.use(c)
	}
	p.anySound = slices.ContainsFunc(p.copies, func(c *placed) bool { return c.standing == sound })
	for _, c := range p.copies {
		if c.standing == failed && p.anySound {
			c.standing = stuck // the image has not failed
		}
	}
}

// stand finds where one copy stands.
func (p *planner) stand(c *placed) {
	var removed bool
	c.since, c.away, removed = p.away(c.disk)
	if c.Status.State == v1alpha1.CopyUnknown {
		c.since = c.Status.LastStateTransitionTime.Time // by this controller's own clock
	}
	switch {
	case removed:
		c.away, c.standing = fmt.Sprintf("disk %s: %s", c.Spec.DiskUUID, c.away), gone
	case c.foreign:
		c.standing = stuck
	case c.Final() && c.Spec.Origin && !elsewhere(c.BackingImageCopy):
		c.standing = failed
	case c.away != "" || c.Status.State == v1alpha1.CopyUnknown:
		c.standing = p.unreached(c)
	case c.Status.State == v1alpha1.CopyReady:
		c.standing = sound
	case c.Status.State == v1alpha1.CopyFailed && elsewhere(c.BackingImageCopy):
		c.standing = stuck
	default:
		c.standing = coming
	}
}

// unreached is the standing of a copy that cannot be reached. One that never was ready has little to come back with, and is
// not waited for as long, unless it holds what somebody has uploaded so far.
func (p *planner) unreached(c *placed) standing {
	wait := p.Settings.RecoveryWait
	uploaded := p.Image.Spec.SourceType == v1alpha1.SourceUpload && c.Status.BytesDone > 0
	if !c.wasReady() && !uploaded {
		wait = min(wait, p.Settings.OriginWait)
	}
	left := wait - p.Now.Sub(c.since)
	if left <= 0 {
		return lost
	}
	p.again(left)
	return uncertain
}

// patience is how many errors of the machine a receiver may meet on a disk before another disk is tried.
const patience = 5

// elsewhere reports whether a copy failed for reasons of its disk, so that another disk may do. What an origin meets is its
// source's affair, but for a full disk; what a receiver meets is its disk's, for its peers have the bytes.
func elsewhere(c *v1alpha1.BackingImageCopy) bool {
	switch {
	case c.Status.State != v1alpha1.CopyFailed:
		return false
	case c.Status.Reason == backingimage.Full.String():
		return true
	case c.Spec.Origin:
		return false
	}
	return c.Final() || c.Status.Reason == backingimage.Internal.String() && c.Status.Attempts >= patience
}

// away says since when a disk cannot be reached and why, "" when it can; removed when it, or its node, is not registered.
func (p *planner) away(d *v1alpha1.Disk) (since time.Time, why string, removed bool) {
	if d == nil {
		return since, "the disk is not registered any more", true
	}
	if name := d.Spec.NodeName; name != "" {
		n := p.nodes[name]
		if n == nil {
			return since, fmt.Sprintf("its node %s is not registered any more", name), true
		}
		if since, why := unready(n.Status.Conditions); why != "" {
			return since, fmt.Sprintf("node %s: %s", name, why), false
		}
	}
	since, why = unready(d.Status.Conditions)
	if why != "" && !strings.HasPrefix(why, "disk ") { // which an agent's words begin with
		why = fmt.Sprintf("disk %s: %s", d.Name, why)
	}
	return since, why, false
}

// unready says since when something says that it is not ready, and why; "" when it does not say so.
func unready(conditions []metav1.Condition) (since time.Time, why string) {
	c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	if c == nil || c.Status == metav1.ConditionTrue {
		return since, ""
	}
	if c.Message == "" {
		return c.LastTransitionTime.Time, "is not ready"
	}
	return c.LastTransitionTime.Time, c.Message
}

// evicts says who wants copies away from a disk, "" when nobody does.
func (p *planner) evicts(d *v1alpha1.Disk, uuid string) string {
	if p.Image.Spec.DiskFileSpecMap[uuid].EvictionRequested {
		return "diskFileSpecMap asks for its eviction"
	}
	if d == nil {
		return ""
	}
	n := p.nodes[d.Spec.NodeName]
	switch {
	case d.Spec.EvictionRequested:
		return "its disk's evictionRequested is set"
	case n != nil && n.Spec.EvictionRequested:
		return fmt.Sprintf("evictionRequested of node %s is set", n.Name)
	}
	return ""
}

// cordoned says that a disk's node is cordoned, "" when it is not. Such a node is about to be drained, most often to come back soon: what it
// has is not relied upon and stays where it is.
func (p *planner) cordoned(d *v1alpha1.Disk) string {
	if d == nil {
		return ""
	}
	if n := p.nodes[d.Spec.NodeName]; n != nil && n.Status.Cordoned {
		return fmt.Sprintf("node %s is cordoned", n.Name)
	}
	return ""
}

// avoids reports whether nothing new is to be put on a disk that was not there.
func (p *planner) avoids(d *v1alpha1.Disk) bool {
	return p.evicts(d, d.Name) != "" || p.cordoned(d) != ""
}

// matches reports whether the image's selectors allow a disk.
func (p *planner) matches(d *v1alpha1.Disk) bool {
	if !placement.HasTags(d.Spec.Tags, p.Image.Spec.DiskSelector) {
		return false
	}
	n := p.nodes[d.Spec.NodeName]
	if n == nil { // a disk that every node reaches has no node, and no node's tags
		return d.Spec.NodeName == "" && len(p.Image.Spec.NodeSelector) == 0
	}
	return placement.HasTags(n.Spec.Tags, p.Image.Spec.NodeSelector)
}
