package controller

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/placement"
)

// shortRetry is how often an image that cannot have its copies is looked at again.
const shortRetry = time.Minute

// findEligible finds the disks on which the image may get a new copy by our own choice.
func (p *planner) findEligible() {
	for _, d := range p.State.Disks {
		if !p.allows(d) || !p.matches(d) || p.avoids(d) {
			continue
		}
		if lacks := p.Settings.Limits.Lacks(d, p.Promised[d.Name], 0, placement.ImageBytes(p.Image)); lacks != "" && p.on[d.Name] == nil {
			p.full = fmt.Sprintf("disk %s: %s", d.Name, lacks)
			continue
		}
		p.eligible = append(p.eligible, d)
	}
}

// allows reports whether new copies are allowed on a disk and its node, and both are ready.
func (p *planner) allows(d *v1alpha1.Disk) bool {
	if !d.Schedulable() || !meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady) ||
		meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionFull) {
		return false
	}
	if d.Spec.NodeName == "" { // a disk that every node reaches
		return true
	}
	n := p.nodes[d.Spec.NodeName]
	return n != nil && n.Schedulable() && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady)
}

// choose makes copies on the best disks, up to need, and returns how many.
func (p *planner) choose(need int) (chosen int) {
	if need <= 0 {
		return 0
	}
	perNode := p.perNode()
	taken := map[string]bool{}
	for _, c := range p.Create {
		taken[c.DiskUUID] = true
	}
	for ; chosen < need; chosen++ {
		best := p.bestDisk(perNode, taken)
		if best == nil {
			break
		}
		p.make(best)
		taken[best.Name] = true
		perNode[best.Spec.NodeName]++
	}
	return chosen
}

// bestDisk is the eligible disk without a copy that the image's first copy shall be on, then one whose node has the fewest copies, then the
// one with the most room.
func (p *planner) bestDisk(perNode map[string]int, taken map[string]bool) *v1alpha1.Disk {
	var best *v1alpha1.Disk
	for _, d := range p.eligible {
		if p.on[d.Name] != nil || taken[d.Name] {
			continue
		}
		if best == nil || cmp.Or(
			compareBool(d.Name == p.first, best.Name == p.first),
			cmp.Compare(perNode[d.Spec.NodeName], perNode[best.Spec.NodeName]),
			cmp.Compare(best.Status.AvailableBytes, d.Status.AvailableBytes),
			strings.Compare(d.Name, best.Name)) < 0 {
			best = d
		}
	}
	return best
}

// shortage says why fewer copies than wanted can be had, in words that name what to change.
func (p *planner) shortage(held int) string {
	spec := p.Image.Spec
	why := fmt.Sprintf("%d of %d disks may hold one; add disks or nodes, or lower spec.minNumberOfCopies", len(p.eligible), len(p.State.Disks))
	switch {
	case p.stranded() != "":
		why = p.stranded()
	case len(p.State.Disks) == 0:
		why = "no disk is registered; is an agent running?"
	case len(p.eligible) == 0 && p.full == "":
		why = fmt.Sprintf("none of %d disks is ready, schedulable and has the tags of nodeSelector %q and diskSelector %q", len(p.State.Disks), spec.NodeSelector, spec.DiskSelector)
	case p.full != "":
		why += "; no room on " + p.full
	}
	return fmt.Sprintf("only %d of %d copies can be placed: %s", held, p.minimum, why)
}
