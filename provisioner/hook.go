package provisioner

import (
	"context"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
)

// draft is a volume while the hooks decide about it.
type draft struct {
	request    CreateRequest
	parameters Parameters
	claim      *v1alpha1.VolumeClaim  // the claim that it is for, if any
	anyNode    bool                   // nobody has chosen a node for it: the order of the request's nodes only spreads volumes
	source     *origin                // the volume or snapshot it is made from, if any
	restore    *found                 // the backup that it is restored from, if any
	image      *v1alpha1.BackingImage // the image it starts from, if any
	bytes      int64
	disk       *v1alpha1.Disk
}

// origin is what a volume is made from when that is no image.
type origin struct {
	what             string // for people
	volume, snapshot string // name of the object; one is set
	disk             string // that holds it
	bytes            int64
	image            *v1alpha1.VolumeImage // what its content began as
}

// hooks are what Create runs, in this order. Each decides one thing of the draft or refuses it.
func (p *Provisioner) hooks() []func(context.Context, *draft) error {
	return []func(context.Context, *draft) error{p.resolveSource, p.resolveClaim, checkReaders, p.ensureImage, p.restoredImage, p.decideSize, p.place}
}

// resolveSource finds the volume to clone, or the snapshot to start from, and waits until that is made. The data comes from it, whatever
// image the class names.
func (p *Provisioner) resolveSource(ctx context.Context, d *draft) error {
	if d.request.SourceHandle != "" {
		h, err := ParseHandle(d.request.SourceHandle)
		if err != nil {
			return backingimage.Errorf(backingimage.NotFound, "%w", err)
		}
		return snapshotTypes[h.Type](p).source(ctx, d, h)
	}
	if d.request.SourceVolume == "" && d.parameters.FromBackup != "" {
		return p.fromBackup(ctx, d)
	}
	id := d.request.SourceVolume
	if id == "" {
		return nil
	}
	v, err := p.store.Volumes.Live(ctx, id)
	if err == nil {
		v, err = p.settled(ctx, v)
	}
	if err != nil {
		return err
	}
	d.source = &origin{what: "volume " + id, volume: id, disk: v.Spec.DiskUUID, bytes: v.Status.CapacityBytes, image: v.Spec.Image}
	return nil
}

// ensureImage finds the class's image, or creates it when the class says from what. An image that exists must be
// the one that the class describes: each difference is named.
func (p *Provisioner) ensureImage(ctx context.Context, d *draft) error {
	if d.parameters.Image == "" || d.source != nil {
		return nil
	}
	if err := p.checkSecret(d); err != nil {
		return err
	}
	image, err := p.store.Images.Live(ctx, d.parameters.Image)
	if backingimage.Is(err, backingimage.NotFound) {
		image, err = p.createImage(ctx, d)
		if backingimage.Is(err, backingimage.Conflict) { // another call was faster; compare with its
			image, err = p.store.Images.Live(ctx, d.parameters.Image)
		}
	}
	if err != nil {
		return err
	}
	if differs := Differences(d.parameters, image); len(differs) > 0 {
		return backingimage.Errorf(backingimage.Invalid,
			"backing image %s exists and is not what the StorageClass describes: %s; name another image, or delete this one when no volume waits for it",
			image.Name, strings.Join(differs, "; "))
	}
	if image.DeletionTimestamp != nil {
		return backingimage.Errorf(backingimage.Precondition, "backing image %s is being deleted; try again when it is gone, or name another", image.Name)
	}
	if err := p.keepSecret(ctx, d, image); err != nil {
		return err
	}
	d.image = image
	return p.imageFailure(image)
}

// notOnDemand is why an image of a source type cannot be made by a class; nil when it can.
func notOnDemand(image string, t v1alpha1.SourceType) error {
	switch t {
	case "":
		return backingimage.Errorf(backingimage.NotFound, "there is no backing image %q: create it, or let the StorageClass say where it comes from with %s and %s", image, keySourceType, keySourceParameters)
	case v1alpha1.SourceUpload:
		return backingimage.Errorf(backingimage.NotFound, "there is no backing image %q, and a StorageClass has no file to upload: upload it first with \"plinth image upload FILE --name %s\"", image, image)
	}
	return nil
}

// createImage makes the image that a class describes.
func (p *Provisioner) createImage(ctx context.Context, d *draft) (*v1alpha1.BackingImage, error) {
	params := d.parameters
	if err := notOnDemand(params.Image, params.SourceType); err != nil {
		return nil, err
	}
	image := &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: params.Image, Annotations: p.firstDisk(ctx, d)}, Spec: v1alpha1.BackingImageSpec{
		SourceType: params.SourceType, SourceParameters: map[string]v1alpha1.SourceParameter{}, Checksum: params.Checksum,
		MinNumberOfCopies: max(params.MinNumberOfCopies, 1), NodeSelector: params.ImageNodeSelector, DiskSelector: params.ImageDiskSelector,
	}}
	for k, v := range params.SourceParameters {
		image.Spec.SourceParameters[k] = v1alpha1.SourceParameter(v)
	}
	if d.wantsSecret() {
		p.nameSecret(image)
	}
	klog.FromContext(ctx).Info("Creating backing image on demand", "backingImage", image.Name, "sourceType", params.SourceType)
	return p.store.Images.Create(ctx, image)
}

// Differences are those between what a class says of an image and what the image is. What the class does not say does not
// differ, nor do wishes that may change (copies, selectors).
func Differences(params Parameters, image *v1alpha1.BackingImage) []string {
	var differs []string
	name := func(key, class, is string) {
		differs = append(differs, key+" is "+shortened(class)+" in the class, "+shortened(is)+" in the image")
	}
	if params.SourceType != "" && params.SourceType != image.Spec.SourceType {
		name(keySourceType, string(params.SourceType), string(image.Spec.SourceType))
	}
	if params.SourceParameters != nil {
		is := image.Spec.Parameters()
		if params.SourceParameters[v1alpha1.ParameterSecret] == "" {
			is = withoutKept(image)
		}
		class := source.Canonical(params.SourceType, params.SourceParameters)
		is = source.Canonical(image.Spec.SourceType, is)
		for _, key := range sortedKeys(class, is) {
			if class[key] != is[key] {
				name(keySourceParameters+"."+key, source.RedactURL(class[key]), source.RedactURL(is[key]))
			}
		}
	}
	if params.Checksum != "" && !sameChecksum(params.Checksum, image) {
		name(keyChecksum, params.Checksum, image.Spec.Checksum)
	}
	return differs
}

// sameChecksum compares with the checksum the image was given, or, for one given none, the SHA-512 that was measured.
func sameChecksum(want string, image *v1alpha1.BackingImage) bool {
	is := image.Spec.Checksum
	if is == "" {
		is = image.Status.Checksum
	}
	a, errA := source.ParseChecksum(want)
	b, errB := source.ParseChecksum(is)
	return errA == nil && errB == nil && a == b
}

func sortedKeys(maps ...map[string]string) []string {
	var keys []string
	for _, m := range maps {
		for k := range m {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// imageFailure is the error that an image stands for whose fetch has failed for good, nil for any other.
func (p *Provisioner) imageFailure(image *v1alpha1.BackingImage) error {
	var failed *v1alpha1.BackingImageCopy
	for _, c := range p.store.Copies.By(store.ByImage, image.Name) {
		if c.Spec.ImageUID != string(image.UID) {
			continue
		}
		if c.Status.State == v1alpha1.CopyReady {
			return nil
		}
		if c.Spec.Origin && c.Final() {
			failed = c
		}
	}
	if c := meta.FindStatusCondition(image.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == v1alpha1.ImageLost {
		return backingimage.Errorf(backingimage.Precondition, "backing image %s: %s", image.Name, c.Message)
	}
	if failed == nil {
		return nil
	}
	return backingimage.Errorf(backingimage.Precondition, "backing image %s failed: %s; delete the image and create it anew with that mended", image.Name, failed.Status.Message)
}

// decideSize settles the volume's bytes: never less than what it starts from.
func (p *Provisioner) decideSize(ctx context.Context, d *draft) error {
	least, from := int64(0), ""
	switch {
	case d.source != nil:
		least, from = d.source.bytes, d.source.what
	case d.restore != nil:
		least, from = roundUp(d.restore.manifest.Bytes()), "backup "+d.restore.manifest.ID
	case d.image != nil:
		virtual, err := p.virtualSize(ctx, d.image)
		if err != nil {
			return err
		}
		least, from = roundUp(virtual), "backing image "+d.image.Name
	}
	r := d.request
	switch {
	case r.RequiredBytes == 0 && least == 0:
		d.bytes = DefaultBytes
		if r.LimitBytes > 0 {
			d.bytes = min(d.bytes, r.LimitBytes/blockBytes*blockBytes)
		}
	case r.RequiredBytes == 0:
		d.bytes = least
	case r.RequiredBytes < least:
		return backingimage.Errorf(backingimage.OutOfRange, "%s are asked for, but %s has %s; ask for at least that", backingimage.ExactSizeText(r.RequiredBytes), from, backingimage.ExactSizeText(least))
	default:
		d.bytes = roundUp(r.RequiredBytes)
	}
	if r.LimitBytes > 0 && d.bytes > r.LimitBytes || d.bytes == 0 {
		return backingimage.Errorf(backingimage.OutOfRange, "the volume needs %s (sizes are multiples of %d bytes), the limit is %s", backingimage.ExactSizeText(max(d.bytes, blockBytes)), blockBytes, backingimage.ExactSizeText(r.LimitBytes))
	}
	return nil
}

// virtualSize waits for the image's virtual size, which is known from the first bytes of its source.
func (p *Provisioner) virtualSize(ctx context.Context, image *v1alpha1.BackingImage) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, p.options.SizeWait)
	defer cancel()
	var bytes int64
	message := "it has not been planned yet"
	err := p.store.Images.Wait(ctx, image.Name, func(now *v1alpha1.BackingImage) (bool, error) {
		if now == nil || now.UID != image.UID {
			return false, nil // the cache is behind, or it was deleted: the deadline decides
		}
		bytes, message = now.Status.VirtualSize, now.Status.Message
		if bytes > 0 {
			return true, nil
		}
		return false, p.imageFailure(now)
	})
	return bytes, waited(err, "backing image %s: its virtual size is not known yet: %s", image.Name, message)
}
