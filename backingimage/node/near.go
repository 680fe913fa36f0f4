package node

import (
	"cmp"
	"context"
	"fmt"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
)

// Exporter gives the content of volumes, of which this package knows that they exist and not how they are stored.
type Exporter interface {
	// Export makes a file, at a path on the disk that holds the volume, of the volume's whole content at one moment; a
	// filesystem in it that is mounted here is clean. disk is that disk's UUID, volume the volume's ID. When Export returns
	// the file survives a power loss; after an error or a kill there is none. It is safe to repeat: a file that is there is
	// replaced. NotFound when there is no such volume on the disk; NotReady when it may go better later; Full.
	Export(ctx context.Context, disk, volume, path string) error
}

// nearJob is the job of an image that is made of what is in the cluster.
func (a *Agent) nearJob(c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage, from, resolved string) fetch.NearJob {
	return fetch.NearJob{
		Dir: d.Layout().StagedImage(c.Spec.ImageUID), Image: image.Name, ImageUID: c.Spec.ImageUID, Source: from, Resolved: resolved,
		Checksum: image.Spec.Checksum, ContentDigest: image.Status.ContentDigest, Clock: a.options.Clock,
	}
}

// planClone says how a copy is made of another image's.
func (a *Agent) planClone(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (attempt, string, error) {
	name := string(image.Spec.SourceParameters[v1alpha1.ParameterBackingImage])
	if name == image.Name {
		return nil, "", backingimage.Errorf(backingimage.Invalid, "%s: image %s cannot be a clone of itself; name another image", v1alpha1.ParameterBackingImage, name)
	}
	of, err := a.store.Images.Live(ctx, name)
	if backingimage.Is(err, backingimage.NotFound) {
		return nil, "", backingimage.Errorf(backingimage.NotFound, "%s: there is no image %s; delete this image, and create it anew when there is one", v1alpha1.ParameterBackingImage, name)
	}
	if err != nil {
		return nil, "", err
	}
	if of.DeletionTimestamp != nil {
		return nil, "", backingimage.Errorf(backingimage.Precondition, "%s: image %s is being deleted; clone another image", v1alpha1.ParameterBackingImage, name)
	}
	near, from := a.readyCopy(string(of.UID), c.Spec.DiskUUID)
	if near == nil {
		waits, err := a.waitsForImage(of)
		return nil, waits, err
	}
	job := a.nearJob(c, d, image, "image "+name, fmt.Sprintf("image %s with UID %s", name, of.UID))
	return func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error) {
		result, err := fetch.Clone(ctx, from, job, report)
		return result, a.suspected(ctx, near.Name, from, err)
	}, "", nil
}

// readyCopy is an image's ready copy on a disk, or else on another one of this node, and its directory; nil when there is none.
func (a *Agent) readyCopy(imageUID, preferred string) (near *v1alpha1.BackingImageCopy, dir string) {
	for _, d := range a.disks.List() {
		c, ok := a.store.Copies.Get(v1alpha1.CopyName(imageUID, d.UUID()))
		if ok && c.Status.State == v1alpha1.CopyReady && (near == nil || d.UUID() == preferred) {
			near, dir = c, d.Layout().Image(imageUID)
		}
	}
	return near, dir
}

// waitsForImage says what a clone waits for; an error when it would wait in vain.
func (a *Agent) waitsForImage(of *v1alpha1.BackingImage) (string, error) {
	for _, c := range a.store.Copies.List() {
		if c.Spec.ImageUID == string(of.UID) && c.Spec.Origin && c.Final() && of.Status.State != v1alpha1.CopyReady {
			return "", backingimage.Errorf(backingimage.Precondition, "%s: image %s failed: %s; delete both images and create them anew with that mended",
				v1alpha1.ParameterBackingImage, of.Name, c.Status.Message)
		}
	}
	state := cmp.Or(of.Status.State, v1alpha1.CopyPending)
	if state == v1alpha1.CopyReady {
		return fmt.Sprintf("waits for a copy of image %s on this node", of.Name), nil
	}
	waits := fmt.Sprintf("waits for image %s, which is %s", of.Name, state)
	if of.Status.Message != "" {
		waits += ": " + of.Status.Message
	}
	return waits, nil
}

// planExport says how a copy is made of a volume's content. What has its point in time needs the volume no longer.
func (a *Agent) planExport(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (attempt, string, error) {
	name := string(image.Spec.SourceParameters[v1alpha1.ParameterVolumeName])
	job := a.nearJob(c, d, image, "volume "+name, "")
	id := ""
	if !fetch.Taken(job.Dir) {
		v, waits, err := a.exportable(ctx, name, c.Spec.DiskUUID)
		if err != nil || waits != "" {
			return nil, waits, err
		}
		id = v.Name
	}
	return func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error) {
		return fetch.Export(ctx, job, func(ctx context.Context, to string) error {
			return a.options.Exporter.Export(ctx, d.UUID(), id, to)
		}, report)
	}, "", nil
}

// exportable returns the volume of an ID or a name when it can be exported to a disk, or what to wait for. The API server
// is asked before it is said that there is none.
func (a *Agent) exportable(ctx context.Context, name, diskUUID string) (v *v1alpha1.Volume, waits string, err error) {
	if a.options.Exporter == nil {
		return nil, "", backingimage.Errorf(backingimage.Unsupported, "this agent has no volumes to export")
	}
	if v = v1alpha1.VolumeNamed(a.store.Volumes.List(), name); v == nil {
		all, err := a.store.Volumes.LiveList(ctx)
		if err != nil {
			return nil, "", err
		}
		v = v1alpha1.VolumeNamed(all, name)
	}
	switch {
	case v == nil:
		return nil, "", backingimage.Errorf(backingimage.NotFound, "%s: there is no volume with the ID or the name %q; delete this image, and create it anew when there is one", v1alpha1.ParameterVolumeName, name)
	case v.DeletionTimestamp != nil:
		return nil, "", backingimage.Errorf(backingimage.NotFound, "%s: volume %s is being deleted; it was not exported before", v1alpha1.ParameterVolumeName, name)
	case v.Spec.DiskUUID != diskUUID:
		return nil, fmt.Sprintf("waits for the copy on disk %s, which holds volume %s", v.Spec.DiskUUID, name), nil
	case v.Status.State == v1alpha1.VolumeFailed:
		return nil, "", backingimage.Errorf(backingimage.Precondition, "%s: volume %s failed: %s", v1alpha1.ParameterVolumeName, name, v.Status.Message)
	case v.Status.State != v1alpha1.VolumeReady:
		return nil, fmt.Sprintf("waits for volume %s, which is %s: %s", name, cmp.Or(v.Status.State, v1alpha1.VolumePending), cmp.Or(v.Status.Message, "its agent has not made it yet")), nil
	}
	return v, "", nil
}

// near plans the copy of an image that is made of what is in the cluster; false for other images.
func (a *Agent) near(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (run attempt, waits string, is bool, err error) {
	plans := map[v1alpha1.SourceType]func(context.Context, *v1alpha1.BackingImageCopy, *disk.Disk, *v1alpha1.BackingImage) (attempt, string, error){
		v1alpha1.SourceClone: a.planClone, v1alpha1.SourceExport: a.planExport,
	}
	plan, is := plans[image.Spec.SourceType]
	if !is {
		return nil, "", false, nil
	}
	if err := source.ValidateSource(image.Spec.SourceType, image.Spec.Parameters()); err != nil {
		return nil, "", true, err
	}
	run, waits, err = plan(ctx, c, d, image)
	return run, waits, true, err
}

// wakeNear looks again at the copies of images that are made of something in the cluster, when that changes.
func (a *Agent) wakeNear(made func(*v1alpha1.BackingImage) bool) {
	for _, i := range a.store.Images.List() {
		if i.Status.State != v1alpha1.CopyReady && made(i) {
			a.wake(string(i.UID))
		}
	}
}
