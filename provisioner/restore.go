package provisioner

import (
	"context"
	"errors"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/provisioner/backup"
)

// errNoRepositories is for a controller that has no access to backups.
var errNoRepositories = backingimage.Errorf(backingimage.Unsupported, "this controller cannot read backup targets")

// find finds the backup of a handle: that of an object, or one that any target has. NotFound.
func (p backups) find(ctx context.Context, h Handle) (*found, error) {
	repositories := p.options.Repositories
	if repositories == nil {
		return nil, errNoRepositories
	}
	if b, err := p.store.Backups.Live(ctx, h.Name); err == nil && b.Spec.Volume == h.Volume {
		return repositories.find(ctx, b.Spec.Target, string(b.UID), h.Volume)
	}
	targets, err := p.store.Targets.LiveList(ctx)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, t := range targets {
		f, err := repositories.find(ctx, t.Name, h.Name, h.Volume)
		if err == nil {
			return f, nil
		}
		if !backingimage.Is(err, backingimage.NotFound) {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 { // it may be in one that cannot be read now
		return nil, backingimage.Errorf(backingimage.KindOf(errs[0]), "find backup %s: %w", h, errors.Join(errs...))
	}
	return nil, backingimage.Errorf(backingimage.NotFound, "there is no backup %s in any of the %d backup targets", h, len(targets))
}

// fromBackup makes a draft start from the backup that the class names.
func (p *Provisioner) fromBackup(ctx context.Context, d *draft) (err error) {
	if p.options.Repositories == nil {
		return errNoRepositories
	}
	d.restore, err = p.options.Repositories.findURL(ctx, keyBackup, d.parameters.FromBackup)
	return err
}

// restoredImage decides on which image a restored volume lies: the one that the class names, if it has the content that the backup needs, else
// any that has it, else one that is restored too.
func (p *Provisioner) restoredImage(ctx context.Context, d *draft) error {
	if d.restore == nil {
		return nil
	}
	needs := d.restore.manifest.Image
	if d.restore.manifest.Volume == nil {
		needs = nil // all of it is restored as it is
	}
	if d.image != nil {
		return suits(d.image, needs, d.restore.manifest)
	}
	if needs == nil {
		return nil
	}
	images, err := p.store.Images.LiveList(ctx)
	if err != nil {
		return err
	}
	for _, i := range images {
		if i.Status.ContentDigest == needs.ContentDigest && i.DeletionTimestamp == nil && (d.image == nil || i.Name == needs.Name) && p.imageFailure(i) == nil {
			d.image = i
		}
	}
	if d.image == nil {
		d.image, err = p.restoreImage(ctx, d)
	}
	return err
}

// suits is nil when a volume that needs an image can be restored over another.
func suits(image *v1alpha1.BackingImage, needs *backup.Image, m *backup.Manifest) error {
	switch {
	case needs == nil:
		return backingimage.Errorf(backingimage.Invalid, "%s: the backup %s is of a volume without an image; remove the key", keyImage, m.ID)
	case image.Status.ContentDigest == "":
		return backingimage.Errorf(backingimage.NotReady, "backing image %s is not fetched yet, so that it cannot be told whether the backup %s can be restored over it: %s", image.Name, m.ID, image.Status.Message)
	case image.Status.ContentDigest != needs.ContentDigest:
		return backingimage.Errorf(backingimage.Precondition, "%s: backing image %s has another content than the backup %s needs, which was made over image %s: its content digest is %s, and must be %s; name another image, or none",
			keyImage, image.Name, m.ID, needs.Name, image.Status.ContentDigest, needs.ContentDigest)
	}
	return nil
}

// restoreImage makes the image of a draft's backup anew, under its name, or, where that is another image's, under one that its content gives.
func (p *Provisioner) restoreImage(ctx context.Context, d *draft) (*v1alpha1.BackingImage, error) {
	f, from := d.restore, d.parameters.RestoreImageFrom
	needs := f.manifest.Image
	if from == v1alpha1.RestoreFromSource && f.origin() == nil {
		return nil, noOrigin(f)
	}
	names := []string{needs.Name, needs.Name + "-" + needs.ContentDigest[:min(12, len(needs.ContentDigest))]}
	if ValidateName(needs.Name) != nil {
		names = []string{"restored-" + needs.ContentDigest}
	}
	image := &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Labels: needs.Labels, Annotations: p.firstDisk(ctx, d)}, Spec: v1alpha1.BackingImageSpec{
		SourceType: v1alpha1.SourceRestore, MinNumberOfCopies: 1, SourceParameters: map[string]v1alpha1.SourceParameter{
			v1alpha1.ParameterBackupURL:        v1alpha1.SourceParameter(backup.URL(f.target.Spec.URL, f.manifest.ID, "", needs.Name)),
			v1alpha1.ParameterBackupTargetName: v1alpha1.SourceParameter(f.target.Name),
		},
	}}
	if from != "" {
		image.Spec.SourceParameters[v1alpha1.ParameterRestoreFrom] = v1alpha1.SourceParameter(from)
	}
	for _, name := range names {
		image.Name = name
		made, err := p.store.Images.Create(ctx, image.DeepCopy())
		if err == nil {
			klog.FromContext(ctx).Info("Restoring backing image", "backingImage", name, "backup", f.manifest.ID)
			return made, nil
		}
		if !backingimage.Is(err, backingimage.Conflict) {
			return nil, err
		}
		is, err := p.store.Images.Live(ctx, name)
		if err == nil && p.isRestored(ctx, is, needs) {
			return is, p.imageFailure(is)
		}
		if err != nil && !backingimage.Is(err, backingimage.NotFound) {
			return nil, err
		}
	}
	return nil, backingimage.Errorf(backingimage.Precondition, "the image of backup %s cannot be restored: images named %s exist and have another content; delete one of them", f.manifest.ID, strings.Join(names, " and "))
}

// isRestored reports whether an image has, or will have, the content that is needed.
func (p *Provisioner) isRestored(ctx context.Context, i *v1alpha1.BackingImage, needs *backup.Image) bool {
	if i.DeletionTimestamp != nil {
		return false
	}
	if i.Status.ContentDigest != "" || i.Spec.SourceType != v1alpha1.SourceRestore {
		return i.Status.ContentDigest == needs.ContentDigest
	}
	// It is being restored, of this backup or of another of the same image.
	f, err := p.options.Repositories.findURL(ctx, v1alpha1.ParameterBackupURL, string(i.Spec.SourceParameters[v1alpha1.ParameterBackupURL]))
	return err == nil && f.manifest.Image != nil && f.manifest.Image.ContentDigest == needs.ContentDigest
}
