package controller

import (
	"context"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

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
		return Near{}
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
		return Near{}, nil
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
