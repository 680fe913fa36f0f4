package provisioner

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// imageSnapshots keeps snapshots of TypeImage: backing images that are exports of volumes, and those that hand-written handles name.
type imageSnapshots struct{ *Provisioner }

// snapshotAnnotation of an image is the name by which it was asked for as a snapshot.
const snapshotAnnotation = "plinth.dev/snapshot-name"

func (p imageSnapshots) create(ctx context.Context, r SnapshotRequest, v *v1alpha1.Volume, params SnapshotParameters) (Snapshot, error) {
	image, err := p.store.Images.Create(ctx, &v1alpha1.BackingImage{
		ObjectMeta: metav1.ObjectMeta{Name: SnapshotID(r.Name), Annotations: map[string]string{snapshotAnnotation: r.Name}},
		Spec: v1alpha1.BackingImageSpec{
			SourceType: v1alpha1.SourceExport, MinNumberOfCopies: 1, NodeSelector: params.NodeSelector, DiskSelector: params.DiskSelector,
			SourceParameters: map[string]v1alpha1.SourceParameter{
				v1alpha1.ParameterVolumeName: v1alpha1.SourceParameter(v.Name), v1alpha1.ParameterExportType: v1alpha1.SourceParameter(params.ExportType),
			},
		},
	})
	if err != nil {
		return Snapshot{}, err
	}
	if image, err = p.exported(ctx, image, v); backingimage.Terminal(err) { // nothing was taken, and the next call begins anew
		err = errors.Join(err, p.store.Images.Delete(ctx, image.Name))
	}
	return p.snapshotOf(image), err
}

// exported waits until the image's point in time is taken: its first copy is being made, and needs the volume no longer.
func (p imageSnapshots) exported(ctx context.Context, image *v1alpha1.BackingImage, v *v1alpha1.Volume) (*v1alpha1.BackingImage, error) {
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	says := "it is not planned yet"
	err := p.store.Copies.Wait(ctx, v1alpha1.CopyName(string(image.UID), v.Spec.DiskUUID), func(c *v1alpha1.BackingImageCopy) (bool, error) {
		if c == nil {
			return false, nil
		}
		says = Progress(c)
		if c.Final() {
			return false, backingimage.Errorf(backingimage.Precondition, "snapshot %s of volume %s failed: %s", image.Name, v.Name, c.Status.Message)
		}
		return c.Status.State == v1alpha1.CopyInProgress || c.Status.State == v1alpha1.CopyReady, nil
	})
	if err != nil {
		return image, waited(err, "snapshot %s of volume %s is not taken yet: %s", image.Name, v.Name, says)
	}
	return p.store.Images.Live(ctx, image.Name)
}

// snapshotOf is an image as a snapshot.
func (p imageSnapshots) snapshotOf(image *v1alpha1.BackingImage) Snapshot {
	s := Snapshot{
		Handle: handleOf(image).String(), Type: TypeImage, Bytes: roundUp(image.Status.VirtualSize), Created: image.CreationTimestamp.Time,
		Ready: image.DeletionTimestamp == nil && meta.IsStatusConditionTrue(image.Status.Conditions, v1alpha1.ConditionReady),
	}
	if image.Spec.SourceType == v1alpha1.SourceExport {
		s.Volume, s.ExportType = string(image.Spec.SourceParameters[v1alpha1.ParameterVolumeName]), string(image.Spec.SourceParameters[v1alpha1.ParameterExportType])
	}
	s.Taken = s.Ready || image.Status.State == v1alpha1.CopyInProgress
	if !s.Ready {
		s.Message, s.Failed = image.Status.Message, p.imageFailure(image)
	}
	return s
}

// handleOf is the handle of an image.
func handleOf(image *v1alpha1.BackingImage) Handle {
	source, _ := json.Marshal(image.Spec.Parameters()) // strings can be
	return Handle{Type: TypeImage, Image: map[string]string{
		keyImage: image.Name, keySourceType: string(image.Spec.SourceType), keySourceParameters: string(source),
	}}
}

func (p imageSnapshots) named(ctx context.Context, name string) (Snapshot, error) {
	image, err := p.store.Images.Live(ctx, SnapshotID(name))
	if err == nil && image.Annotations[snapshotAnnotation] != name {
		err = backingimage.Errorf(backingimage.NotFound, "image %s is no snapshot", image.Name)
	}
	if err != nil {
		return Snapshot{}, err
	}
	return p.snapshotOf(image), nil
}

// find returns the image of a handle, and what the handle says of it. NotFound when there is none; Invalid when it is another.
func (p imageSnapshots) find(ctx context.Context, h Handle) (*v1alpha1.BackingImage, Parameters, error) {
	described, err := ParseParameters(h.Image)
	if err != nil {
		return nil, described, err
	}
	image, err := p.store.Images.Live(ctx, described.Image)
	if err != nil {
		return nil, described, err
	}
	if differs := Differences(described, image); len(differs) > 0 {
		return nil, described, backingimage.Errorf(backingimage.NotFound, "backing image %s is not what the snapshot handle describes: %s", image.Name, strings.Join(differs, "; "))
	}
	return image, described, nil
}

// get returns an image, or, when there is none and the handle says from what it is made on demand, what will be one: a volume can be
// made from that.
func (p imageSnapshots) get(ctx context.Context, h Handle) (Snapshot, error) {
	image, described, err := p.find(ctx, h)
	switch {
	case err == nil:
		s := p.snapshotOf(image)
		s.Handle = h.String() // which may have been written in other words
		return s, nil
	case backingimage.Is(err, backingimage.NotFound) && notOnDemand(described.Image, described.SourceType) == nil && described.SourceType == v1alpha1.SourceDownload:
		if _, lerr := p.store.Images.Live(ctx, described.Image); backingimage.Is(lerr, backingimage.NotFound) {
			return Snapshot{Handle: h.String(), Type: TypeImage, Ready: true}, nil
		}
	}
	return Snapshot{}, err
}

func (p imageSnapshots) list(ctx context.Context) ([]Snapshot, error) {
	images, err := p.store.Images.LiveList(ctx)
	var list []Snapshot
	for _, image := range images {
		if image.Annotations[snapshotAnnotation] != "" {
			list = append(list, p.snapshotOf(image))
		}
	}
	return list, err
}

// delete removes the image when nothing was made from it that still exists.
func (p imageSnapshots) delete(ctx context.Context, h Handle) error {
	image, _, err := p.find(ctx, h)
	if err != nil {
		return err
	}
	users, err := p.users(ctx, image)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return backingimage.Errorf(backingimage.InUse, "backing image %s, which is the snapshot, is used by %s; delete them first", image.Name, strings.Join(users, ", "))
	}
	if err := p.store.Images.Delete(ctx, image.Name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err = p.store.Images.Wait(ctx, image.Name, func(now *v1alpha1.BackingImage) (bool, error) {
		if now == nil || now.UID != image.UID {
			return true, nil
		}
		image = now
		return false, nil
	})
	return waited(err, "snapshot %s: waiting for the image to be gone: %s", image.Name, image.Status.Message)
}

// users are the volumes and images that an image was or is to be made into, those included that the cache does not know yet.
func (p imageSnapshots) users(ctx context.Context, image *v1alpha1.BackingImage) (users []string, err error) {
	volumes, err := p.store.Volumes.LiveList(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range volumes {
		if v.Spec.Image != nil && v.Spec.Image.UID == string(image.UID) {
			users = append(users, "volume "+v.Name)
		}
	}
	images, err := p.store.Images.LiveList(ctx)
	for _, i := range images {
		if i.Spec.Clones(image.Name) && !meta.IsStatusConditionTrue(i.Status.Conditions, v1alpha1.ConditionReady) {
			users = append(users, "image "+i.Name)
		}
	}
	return users, err
}

// source makes a draft start from the handle's image, whatever image the class names.
func (p imageSnapshots) source(_ context.Context, d *draft, h Handle) error {
	described, err := ParseParameters(h.Image)
	if err != nil {
		return err
	}
	class := &d.parameters
	class.Image, class.SourceType, class.SourceParameters, class.Checksum = described.Image, described.SourceType, described.SourceParameters, described.Checksum
	class.MinNumberOfCopies, class.ImageNodeSelector, class.ImageDiskSelector = described.MinNumberOfCopies, described.ImageNodeSelector, described.ImageDiskSelector
	return nil
}
