package controller

import (
	"cmp"
	"context"
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
	// Gone names what the image is made of when that exists no more, as in "volume pvc-1"; "" when it exists, or is outside.
	Gone string
}

// originDisk is the disk that the origin copy must be on because the bytes are there, nil when that does not matter (any
// more). The disks of volumes that wait come first, then those with a copy, then the best; those where it is stuck last.
func (p *planner) originDisk() *v1alpha1.Disk {
	if len(p.Near.Disks) == 0 || p.anySound || p.failed() || p.awaited() {
		return nil
	}
	holds, nodes := p.nearPlaces()
	for _, c := range p.copies {
		if c.Spec.Origin && p.canFetch(c) && (holds[c.Spec.DiskUUID] || nodes[nodeOf(c)]) {
			return c.disk
		}
	}
	near := p.nearDisks(holds, nodes)
	if len(near) == 0 {
		return nil
	}
	useless := func(d *v1alpha1.Disk) bool {
		c := p.on[d.Name]
		return c != nil && c.standing != coming
	}
	return slices.MinFunc(near, func(a, b *v1alpha1.Disk) int {
		return cmp.Or(
			compareBool(!useless(a), !useless(b)),
			cmp.Compare(len(p.waiting[b.Name]), len(p.waiting[a.Name])),
			compareBool(p.on[a.Name] != nil, p.on[b.Name] != nil),
			cmp.Compare(b.Status.AvailableBytes, a.Status.AvailableBytes),
			strings.Compare(a.Name, b.Name))
	})
}

// nearPlaces are the disks that hold the bytes, and the nodes whose every disk will do.
func (p *planner) nearPlaces() (holds, nodes map[string]bool) {
	holds, nodes = map[string]bool{}, map[string]bool{}
	for _, name := range p.Near.Disks {
		holds[name] = true
		if d := p.disks[name]; d != nil && d.Spec.NodeName != "" && !p.Near.Only {
			nodes[d.Spec.NodeName] = true
		}
	}
	return holds, nodes
}

// nearDisks are the disks on which the origin copy can be made: those that hold the bytes, else others of their nodes.
func (p *planner) nearDisks(holds, nodes map[string]bool) []*v1alpha1.Disk {
	eligible := make(map[*v1alpha1.Disk]bool, len(p.eligible))
	for _, d := range p.eligible {
		eligible[d] = true
	}
	var holding, beside []*v1alpha1.Disk
	for _, d := range p.State.Disks {
		if c := p.on[d.Name]; c != nil && c.foreign {
			continue // its agent thinks that it is made
		}
		allowed := p.Near.Only || len(p.waiting[d.Name]) > 0 || eligible[d]
		switch {
		case allowed && holds[d.Name]:
			holding = append(holding, d)
		case allowed && nodes[d.Spec.NodeName]:
			beside = append(beside, d)
		}
	}
	if len(holding) > 0 {
		return holding
	}
	return beside
}

// near finds where the bytes are that an image is made of. Why they are nowhere, or cannot be used, is not its affair: the
// agent that is to make the origin copy says it.
func (c *Images) near(ctx context.Context, image *v1alpha1.BackingImage) (Near, error) {
	switch image.Spec.SourceType {
	case v1alpha1.SourceClone:
		return c.nearCopies(string(image.Spec.SourceParameters[v1alpha1.ParameterBackingImage])), nil
	case v1alpha1.SourceExport:
		return c.nearVolume(ctx, string(image.Spec.SourceParameters[v1alpha1.ParameterVolumeName]))
	}
	return Near{}, nil
}

// nearCopies are the disks with ready copies of an image, or with any copies when none is ready.
func (c *Images) nearCopies(image string) Near {
	of, exists := c.store.Images.Get(image)
	if !exists {
		return Near{Gone: "backing image " + image}
	}
	var ready, all []string
	for _, b := range c.copies(image) {
		if b.Spec.ImageUID != string(of.UID) || b.DeletionTimestamp != nil {
			continue
		}
		all = append(all, b.Spec.DiskUUID)
		if b.Status.State == v1alpha1.CopyReady {
			ready = append(ready, b.Spec.DiskUUID)
		}
	}
	if len(ready) > 0 {
		all = ready
	}
	return Near{Disks: all}
}

// nearVolume is the disk of a volume. The API server is asked before it is said that there is no such volume: the copy would
// be made elsewhere, and fail there for good.
func (c *Images) nearVolume(ctx context.Context, name string) (Near, error) {
	v := v1alpha1.VolumeNamed(c.store.Volumes.List(), name)
	if v == nil {
		all, err := c.store.Volumes.LiveList(ctx)
		if err != nil {
			return Near{}, err
		}
		v = v1alpha1.VolumeNamed(all, name)
	}
	if v == nil {
		return Near{Gone: "volume " + name}, nil
	}
	return Near{Disks: []string{v.Spec.DiskUUID}, Only: true}, nil
}

// wakeClones looks again at the images that are clones of an image and not made yet.
func (c *Images) wakeClones(image string) {
	c.wakeUnready(func(i *v1alpha1.BackingImage) bool { return i.Spec.Clones(image) })
}

// wakeExports looks again at the images that are exports of a volume and not made yet.
func (c *Images) wakeExports(v *v1alpha1.Volume) {
	c.wakeUnready(func(i *v1alpha1.BackingImage) bool { return i.Spec.Exports(v) })
}

func (c *Images) wakeUnready(which func(*v1alpha1.BackingImage) bool) {
	for _, i := range c.store.Images.List() {
		if i.Status.State != v1alpha1.CopyReady && which(i) {
			c.loop.Enqueue(i.Name)
		}
	}
}
