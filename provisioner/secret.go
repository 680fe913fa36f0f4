package provisioner

import (
	"context"
	"errors"
	"maps"
	"slices"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
)

// The sidecar gives the content of the CSI provisioner secret (csi.storage.k8s.io/provisioner-secret-name of the class) and
// not its name. For an image that is downloaded on demand it is kept, under a name that follows from the image's, until
// the image goes. The image is made first and names it: a kill between the two leaves an image whose agent waits for the
// secret, which the next call keeps, and never a secret without an image.

// wantsSecret reports whether the image that a class describes is to be downloaded with the provisioner's secret: one is
// given, and the class names no other.
func (d *draft) wantsSecret() bool {
	p := d.parameters
	return len(d.request.Secrets) > 0 && p.SourceType == v1alpha1.SourceDownload && p.SourceParameters[v1alpha1.ParameterSecret] == ""
}

// checkSecret refuses a secret that cannot be read, before anything is made.
func (p *Provisioner) checkSecret(d *draft) error {
	if !d.wantsSecret() {
		return nil
	}
	if p.options.Credentials == nil {
		return backingimage.Errorf(backingimage.Unsupported, "the provisioner secret cannot be kept: this controller has no secrets; name one with %s.%s", keySourceParameters, v1alpha1.ParameterSecret)
	}
	_, err := credential.Parse("of the StorageClass (csi.storage.k8s.io/provisioner-secret-name)", d.secret())
	return err
}

func (d *draft) secret() map[string][]byte {
	data := make(map[string][]byte, len(d.request.Secrets))
	for key, value := range d.request.Secrets {
		data[key] = []byte(value.Reveal())
	}
	return data
}

// nameSecret makes a new image name the secret that keepSecret keeps.
func (p *Provisioner) nameSecret(image *v1alpha1.BackingImage) {
	ref := credential.ImageRef(p.options.Namespace, image.Name)
	image.Annotations = map[string]string{credential.ProvisionerAnnotation: credential.SecretAwaited}
	image.Spec.SourceParameters[v1alpha1.ParameterSecret] = v1alpha1.SourceParameter(ref.Name)
	image.Spec.SourceParameters[v1alpha1.ParameterSecretNamespace] = v1alpha1.SourceParameter(ref.Namespace)
}

// keepSecret keeps the secret of an image that names it, or its new content, and tells the agent that it is there.
func (p *Provisioner) keepSecret(ctx context.Context, d *draft, image *v1alpha1.BackingImage) error {
	ref, ours := credential.Kept(image)
	if !d.wantsSecret() || !ours || ref.Namespace != p.options.Namespace {
		return nil
	}
	data := d.secret()
	kept, err := p.options.Credentials.Get(ctx, ref)
	if err != nil && !backingimage.Is(err, backingimage.NotFound) && !backingimage.Is(err, backingimage.Corrupt) {
		return err
	}
	if err != nil || !maps.EqualFunc(kept, data, slices.Equal) {
		if err := p.options.Credentials.Put(ctx, ref, data); err != nil {
			return err
		}
	}
	now, err := p.store.Images.Modify(ctx, image.Name, func(i *v1alpha1.BackingImage) {
		if _, ours := credential.Kept(i); ours {
			i.Annotations[credential.ProvisionerAnnotation] = credential.SecretKept
		}
	})
	if err == nil && now.DeletionTimestamp == nil {
		return nil
	}
	if err == nil || backingimage.Is(err, backingimage.NotFound) { // it is going, and its secret went perhaps before
		err = errors.Join(err, p.options.Credentials.Delete(ctx, ref))
	}
	return err
}

// withoutKept are an image's source parameters as the class that made it has them: without the secret that is kept for it.
func withoutKept(image *v1alpha1.BackingImage) map[string]string {
	is := image.Spec.Parameters()
	if _, ours := credential.Kept(image); ours {
		delete(is, v1alpha1.ParameterSecret)
		delete(is, v1alpha1.ParameterSecretNamespace)
	}
	return is
}
