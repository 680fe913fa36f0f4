package controller

import (
	"cmp"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Near says where the bytes are that an image is made of, when they are in the cluster already. The zero Near is for an
// image whose bytes come from outside, or are nowhere: any disk may hold its origin copy.
type Near struct {
	// Disks that hold the bytes, or are about to.
	Disks []string
	// Only these disks can make the origin copy, whatever the selectors say; else their nodes' other disks can, too.
	Only bool
}

// originDisk is the disk that the origin copy must be on because the bytes are there, nil when that does not matter (any
// more). The disks of volumes that wait come first, then those with a copy, then the best.
func originDisk(s State, eligible []*v1alpha1.Disk, have map[string]*v1alpha1.BackingImageCopy, waiting map[string][]string) *v1alpha1.Disk {
	near := nearDisks(s, eligible, waiting)
	if len(near) == 0 {
		return nil
	}
	for _, c := range have {
		if c.Status.State == v1alpha1.CopyReady || c.Spec.Origin && (c.Final() || serves(s, c)) {
			return nil
		}
	}
	return slices.MinFunc(near, func(a, b *v1alpha1.Disk) int {
		return cmp.Or(
			cmp.Compare(len(waiting[b.Name]), len(waiting[a.Name])),
			compareBool(have[b.Name] != nil, have[a.Name] != nil),
			cmp.Compare(b.Status.AvailableBytes, a.Status.AvailableBytes),
			strings.Compare(a.Name, b.Name))
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// nearDisks are the disks on which the origin copy can be made: those that hold the bytes, else others of their nodes.
func nearDisks(s State, eligible []*v1alpha1.Disk, waiting map[string][]string) []*v1alpha1.Disk {
	nodes := nearNodes(s)
	var holding, beside []*v1alpha1.Disk
	for _, disk := range s.Disks {
		_, waits := waiting[disk.Name]
		allowed := s.Near.Only || waits || slices.Contains(eligible, disk)
		switch {
		case allowed && slices.Contains(s.Near.Disks, disk.Name):
			holding = append(holding, disk)
		case allowed && nodes[disk.Spec.NodeName]:
			beside = append(beside, disk)
		}
	}
	if len(holding) > 0 {
		return holding
	}
	return beside
}

// nearNodes are the nodes whose every disk will do, beside those that hold the bytes.
func nearNodes(s State) map[string]bool {
	nodes := map[string]bool{}
	for _, disk := range s.Disks {
		if !s.Near.Only && disk.Spec.NodeName != "" && slices.Contains(s.Near.Disks, disk.Name) {
			nodes[disk.Spec.NodeName] = true
		}
	}
	return nodes
}

// serves reports whether a copy is where it can be made of what is in the cluster.
func serves(s State, c *v1alpha1.BackingImageCopy) bool {
	nodes := nearNodes(s)
	return slices.ContainsFunc(s.Disks, func(disk *v1alpha1.Disk) bool {
		return disk.Name == c.Spec.DiskUUID && (slices.Contains(s.Near.Disks, disk.Name) || nodes[disk.Spec.NodeName])
	})
}
