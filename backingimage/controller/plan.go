// Package controller holds the cluster's loops for images. What copies an image shall have, and which may go, is decided
// by Plan, a pure function; the loop around it (Images) reads the caches, applies the decision and reports it in status.
package controller

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// State is all that a decision about one image depends on. Copies, disks, nodes and volumes may be missing, stale or
// contradictory; those that do not concern the image are passed over.
type State struct {
	Image   *v1alpha1.BackingImage
	Near    Near // where the bytes are that the image is made of
	Copies  []*v1alpha1.BackingImageCopy
	Disks   []*v1alpha1.Disk
	Nodes   []*v1alpha1.StorageNode
	Volumes []*v1alpha1.Volume
}

// Decision is what shall be done about one image.
type Decision struct {
	Create []v1alpha1.BackingImageCopySpec // copies to make, sorted by disk
	Delete []string                        // names of copies that shall go, sorted
	Origin string                          // name of the copy to mark as origin; "" when nothing is to be marked
	Wanted int                             // how many ready copies make the image healthy
	Short  string                          // why fewer copies than wanted can be had; "" when they can
	Done   bool                            // the image is being deleted and nothing holds it
	Held   []string                        // volumes that hold an image that is being deleted, sorted
}

// Plan decides. It is total: any State yields a Decision that, applied and planned again, comes to rest.
func Plan(s State) Decision {
	waiting := waitingDisks(s)
	if s.Image.DeletionTimestamp != nil && len(waiting) == 0 {
		return dissolve(s)
	}
	var d Decision
	if s.Image.DeletionTimestamp != nil {
		d.Held = holders(waiting)
	}
	have := map[string]*v1alpha1.BackingImageCopy{}
	for _, c := range s.Copies {
		switch {
		case c.Spec.Image != s.Image.Name:
		case c.Spec.ImageUID != string(s.Image.UID):
			d.Delete = append(d.Delete, c.Name)
		case c.DeletionTimestamp == nil:
			have[c.Spec.DiskUUID] = c
		}
	}
	eligible := eligibleDisks(s)
	near := originDisk(s, eligible, have, waiting)
	place(s, &d, eligible, near, have, waiting)
	d.Origin = origin(&d, near, have, waiting)
	slices.Sort(d.Delete)
	return d
}

// waitingDisks maps the disks on which volumes wait for the image to those volumes' names.
func waitingDisks(s State) map[string][]string {
	waiting := map[string][]string{}
	for _, v := range s.Volumes {
		if v.Waits() && v.Spec.Image.UID == string(s.Image.UID) {
			waiting[v.Spec.DiskUUID] = append(waiting[v.Spec.DiskUUID], v.Name)
		}
	}
	return waiting
}

// holders are the names of all waiting volumes, sorted.
func holders(waiting map[string][]string) []string {
	var all []string
	for _, names := range waiting {
		all = append(all, names...)
	}
	slices.Sort(all)
	return all
}

// dissolve lets an image go that nothing holds.
func dissolve(s State) Decision {
	d := Decision{Done: true}
	for _, c := range s.Copies {
		if c.Spec.Image == s.Image.Name && c.DeletionTimestamp == nil {
			d.Delete = append(d.Delete, c.Name)
		}
	}
	slices.Sort(d.Delete)
	return d
}

// place adds the copies that are missing: near the bytes that the image is made of, where volumes wait, where users ask for one
// by disk, everywhere for prefetch, and on the best disks until there are enough.
func place(s State, d *Decision, eligible []*v1alpha1.Disk, near *v1alpha1.Disk, have map[string]*v1alpha1.BackingImageCopy, waiting map[string][]string) {
	wanted := map[string]*v1alpha1.Disk{}
	if near != nil {
		wanted[near.Name] = near
	}
	for _, disk := range s.Disks {
		_, waits := waiting[disk.Name]
		spec, listed := s.Image.Spec.DiskFileSpecMap[disk.Name]
		if waits || (listed && !spec.EvictionRequested) || (s.Image.Spec.Prefetch && slices.Contains(eligible, disk)) {
			wanted[disk.Name] = disk
		}
	}
	held := len(have)
	for name := range wanted {
		if have[name] == nil {
			held++
		}
	}
	minimum := int(max(s.Image.Spec.MinNumberOfCopies, 1))
	if s.Image.DeletionTimestamp != nil {
		minimum = 0
	}
	for held < minimum {
		best := bestDisk(eligible, have, wanted)
		if best == nil {
			d.Short = fmt.Sprintf("only %d of %d copies can be placed: %s", held, minimum, shortage(s, eligible))
			break
		}
		wanted[best.Name] = best
		held++
	}
	d.Wanted = max(minimum, len(wanted))
	for _, disk := range wanted {
		if have[disk.Name] == nil {
			d.Create = append(d.Create, v1alpha1.BackingImageCopySpec{
				Image: s.Image.Name, ImageUID: string(s.Image.UID), DiskUUID: disk.Name, NodeName: disk.Spec.NodeName,
			})
		}
	}
	slices.SortFunc(d.Create, func(a, b v1alpha1.BackingImageCopySpec) int { return strings.Compare(a.DiskUUID, b.DiskUUID) })
}

// eligibleDisks are those on which the image may get a new copy by our own choice.
func eligibleDisks(s State) []*v1alpha1.Disk {
	var eligible []*v1alpha1.Disk
	for _, disk := range s.Disks {
		if disk.Schedulable() && meta.IsStatusConditionTrue(disk.Status.Conditions, v1alpha1.ConditionReady) &&
			HasTags(disk.Spec.Tags, s.Image.Spec.DiskSelector) && nodeEligible(s, disk.Spec.NodeName) &&
			!s.Image.Spec.DiskFileSpecMap[disk.Name].EvictionRequested {
			eligible = append(eligible, disk)
		}
	}
	return eligible
}

func nodeEligible(s State, name string) bool {
	if name == "" { // a disk that every node reaches
		return len(s.Image.Spec.NodeSelector) == 0
	}
	for _, n := range s.Nodes {
		if n.Name == name {
			return n.Schedulable() && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady) && HasTags(n.Spec.Tags, s.Image.Spec.NodeSelector)
		}
	}
	return false
}

// HasTags reports whether tags contain every tag of a selector.
func HasTags(tags, selector []string) bool {
	for _, t := range selector {
		if !slices.Contains(tags, t) {
			return false
		}
	}
	return true
}

// bestDisk is the eligible disk without a copy whose node has the fewest copies, then the one with the most room.
func bestDisk(eligible []*v1alpha1.Disk, have map[string]*v1alpha1.BackingImageCopy, wanted map[string]*v1alpha1.Disk) *v1alpha1.Disk {
	perNode := map[string]int{}
	for _, c := range have {
		perNode[c.Spec.NodeName]++
	}
	for name, disk := range wanted {
		if have[name] == nil {
			perNode[disk.Spec.NodeName]++
		}
	}
	var best *v1alpha1.Disk
	for _, disk := range eligible {
		if have[disk.Name] != nil || wanted[disk.Name] != nil {
			continue
		}
		if best == nil || cmp.Or(
			cmp.Compare(perNode[disk.Spec.NodeName], perNode[best.Spec.NodeName]),
			cmp.Compare(best.Status.AvailableBytes, disk.Status.AvailableBytes),
			cmp.Compare(disk.Name, best.Name)) < 0 {
			best = disk
		}
	}
	return best
}

// shortage says why no further disk is eligible, in words that name what to change.
func shortage(s State, eligible []*v1alpha1.Disk) string {
	if len(s.Disks) == 0 {
		return "no disk is registered; is an agent running?"
	}
	if len(eligible) == 0 {
		return fmt.Sprintf("none of %d disks is ready, schedulable and has the tags of nodeSelector %q and diskSelector %q", len(s.Disks), s.Image.Spec.NodeSelector, s.Image.Spec.DiskSelector)
	}
	return fmt.Sprintf("%d of %d disks may hold one; add disks or nodes, or lower spec.minNumberOfCopies", len(eligible), len(s.Disks))
}

// origin names the copy that shall fetch from the source, when none is marked and none is ready. A copy that is yet
// to be made is marked at its creation. near is where it must be, wherever one is marked already.
func origin(d *Decision, near *v1alpha1.Disk, have map[string]*v1alpha1.BackingImageCopy, waiting map[string][]string) string {
	if near != nil {
		return originOn(d, near, have)
	}
	disks := make([]string, 0, len(have))
	for name, c := range have {
		if c.Spec.Origin || c.Status.State == v1alpha1.CopyReady {
			return ""
		}
		disks = append(disks, name)
	}
	slices.SortFunc(disks, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(waiting[b]), len(waiting[a])), strings.Compare(a, b))
	})
	if len(disks) > 0 {
		return have[disks[0]].Name
	}
	if len(d.Create) > 0 {
		first := slices.MinFunc(d.Create, func(a, b v1alpha1.BackingImageCopySpec) int {
			return cmp.Or(cmp.Compare(len(waiting[b.DiskUUID]), len(waiting[a.DiskUUID])), strings.Compare(a.DiskUUID, b.DiskUUID))
		})
		markCreated(d, first.DiskUUID)
	}
	return ""
}

// originOn names the copy on a disk, or marks the one that is to be made there.
func originOn(d *Decision, disk *v1alpha1.Disk, have map[string]*v1alpha1.BackingImageCopy) string {
	if c := have[disk.Name]; c != nil {
		return c.Name
	}
	markCreated(d, disk.Name)
	return ""
}

func markCreated(d *Decision, disk string) {
	for i := range d.Create {
		d.Create[i].Origin = d.Create[i].DiskUUID == disk
	}
}
