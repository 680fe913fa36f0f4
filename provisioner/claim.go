package provisioner

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Claims reads the claims (PersistentVolumeClaims) of an orchestrator that has such.
type Claims interface {
	// Get returns a claim. NotFound.
	Get(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
}

// selectedNodeAnnotation is at a claim that is bound late: the node that the scheduler chose. At any other, the order in which the provisioner sidecar names
// nodes is one by the claim's name.
const selectedNodeAnnotation = "volume.kubernetes.io/selected-node"

// claimOf is the claim that a volume is asked for, as the provisioner sidecar's --extra-create-metadata tells; nil when nobody says.
func claimOf(parameters map[string]string) *v1alpha1.VolumeClaim {
	c := v1alpha1.VolumeClaim{Namespace: parameters[keyClaimNamespace], Name: parameters[keyClaimName]}
	if c.Namespace == "" || c.Name == "" {
		return nil
	}
	return &c
}

// resolveClaim reads the claim, which may ask for another image than its class names. Where the class does not let it, a claim that cannot
// be read holds nothing up.
func (p *Provisioner) resolveClaim(ctx context.Context, d *draft) error {
	d.claim = claimOf(d.request.Parameters)
	switch {
	case p.options.Claims == nil:
		return nil
	case d.claim == nil && d.parameters.AllowOverride:
		return backingimage.Errorf(backingimage.Precondition, "the StorageClass has %s, but the call does not say for which claim it is: run csi-provisioner with --extra-create-metadata", keyAllowOverride)
	case d.claim == nil:
		return nil
	}
	claim, err := p.options.Claims.Get(ctx, d.claim.Namespace, d.claim.Name)
	if err != nil && !d.parameters.AllowOverride && d.claim.Namespace != p.options.Namespace { // where claims stand in for others
		klog.FromContext(ctx).Info("Cannot read the claim of a volume", "volume", d.request.Name, "claim", klog.KRef(d.claim.Namespace, d.claim.Name), "why", err)
		return nil
	}
	if err != nil {
		return err
	}
	d.anyNode = claim.Annotations[selectedNodeAnnotation] == ""
	if claim, err = p.original(ctx, claim); err != nil {
		return err
	}
	d.claim = &v1alpha1.VolumeClaim{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}
	return p.overrideImage(ctx, d, claim)
}

// AskedImage is the image that a claim asks for, "" when it leaves that to its class, and the field that says so. Precondition when it
// asks for two.
func AskedImage(claim *corev1.PersistentVolumeClaim) (image, by string, err error) {
	annotated, source := claim.Annotations[v1alpha1.ImageAnnotation], imageSource(claim)
	if source == "" {
		return annotated, "annotation " + v1alpha1.ImageAnnotation, nil
	}
	if annotated != "" && annotated != source {
		return "", "", backingimage.Errorf(backingimage.Precondition, "claim %s/%s asks for backing image %s by spec.dataSourceRef and for %s by the annotation %s: remove the annotation",
			claim.Namespace, claim.Name, shortened(source), shortened(annotated), v1alpha1.ImageAnnotation)
	}
	return source, "spec.dataSourceRef", nil
}

// overrideImage takes the image that a claim asks for, where the class and the image allow it. The image must exist: what a class says
// of a source is said of its own image.
func (p *Provisioner) overrideImage(ctx context.Context, d *draft, claim *corev1.PersistentVolumeClaim) error {
	image, by, err := AskedImage(claim)
	if err != nil {
		return err
	}
	who := "claim " + d.claim.Namespace + "/" + d.claim.Name
	switch {
	case d.restore != nil && imageSource(claim) != "":
		return backingimage.Errorf(backingimage.Precondition, "%s asks for backing image %s by its %s, and its StorageClass restores a backup: take a class without %s", who, shortened(image), by, keyBackup)
	case image == "" || image == d.parameters.Image || d.source != nil:
		return nil
	case !d.parameters.AllowOverride:
		return backingimage.Errorf(backingimage.Precondition, "%s asks for backing image %s by its %s, and its StorageClass does not let it: set the class's parameter %s to \"true\", or leave that out of the claim",
			who, shortened(image), by, keyAllowOverride)
	}
	if err := ValidateName(image); err != nil {
		return backingimage.Errorf(backingimage.Invalid, "%s: %s: %w", who, by, err)
	}
	of, err := p.store.Images.Live(ctx, image)
	if backingimage.Is(err, backingimage.NotFound) {
		return backingimage.Errorf(backingimage.NotFound, "%s asks for backing image %q by its %s, and there is none of that name: create it, or name another", who, image, by)
	}
	if err != nil {
		return err
	}
	if !of.Spec.Allows(d.claim.Namespace) {
		return backingimage.Errorf(backingimage.Precondition, "%s may not use backing image %s: add namespace %s to the image's spec.allowedNamespaces, or name another image", who, image, d.claim.Namespace)
	}
	d.parameters = d.parameters.withImage(image)
	return nil
}

// withImage are the parameters with another image, of which they say nothing else.
func (p Parameters) withImage(name string) Parameters {
	p.Image, p.SourceType, p.SourceParameters, p.Checksum = name, "", nil, ""
	p.MinNumberOfCopies, p.ImageNodeSelector, p.ImageDiskSelector = 0, nil, nil
	return p
}
