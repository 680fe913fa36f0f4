package provisioner

import (
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// imageSource is the image that a claim names as its dataSourceRef, "" for none.
func imageSource(claim *corev1.PersistentVolumeClaim) string {
	ref := claim.Spec.DataSourceRef
	if ref == nil || ref.APIGroup == nil || *ref.APIGroup != v1alpha1.GroupVersion.Group || ref.Kind != "BackingImage" {
		return ""
	}
	return ref.Name
}

// standInFor is a claim in Plinth's own namespace that asks for what another asks for, without its source, so that the provisioner sidecar
// takes it on. Its name follows from the other's UID.
func standInFor(claim *corev1.PersistentVolumeClaim, namespace string) *corev1.PersistentVolumeClaim {
	s := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: standInName(claim.UID),
			Labels:      map[string]string{"app.kubernetes.io/managed-by": "plinth"},
			Annotations: map[string]string{v1alpha1.StandInAnnotation: claimKey(claim)},
		},
		Spec: *claim.Spec.DeepCopy(),
	}
	s.Spec.DataSource, s.Spec.DataSourceRef = nil, nil
	if node := claim.Annotations[selectedNodeAnnotation]; node != "" {
		s.Annotations[selectedNodeAnnotation] = node
	}
	return s
}

func standInName(of types.UID) string { return "from-image-" + string(of) }

// claimKey names a claim, and none that is made under its name later.
func claimKey(c *corev1.PersistentVolumeClaim) string {
	return c.Namespace + "/" + c.Name + "/" + string(c.UID)
}

// parseClaimKey is the claim that a key names. Invalid.
func parseClaimKey(key string) (v1alpha1.VolumeClaim, error) {
	parts := strings.Split(key, "/")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return v1alpha1.VolumeClaim{}, backingimage.Errorf(backingimage.Invalid, "annotation %s: %s is not a claim's namespace/name/uid", v1alpha1.StandInAnnotation, shortened(key))
	}
	return v1alpha1.VolumeClaim{Namespace: parts[0], Name: parts[1], UID: types.UID(parts[2])}, nil
}

// original is the claim for which another stands in. Any claim outside of Plinth's own namespace is its own, whatever it says of itself. NotFound
// when the original is gone.
func (p *Provisioner) original(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	key := claim.Annotations[v1alpha1.StandInAnnotation]
	if key == "" || claim.Namespace != p.options.Namespace {
		return claim, nil
	}
	of, err := parseClaimKey(key)
	if err != nil {
		return nil, err
	}
	is, err := p.options.Claims.Get(ctx, of.Namespace, of.Name)
	if err == nil && (is.UID != of.UID || claim.Name != standInName(of.UID)) {
		err = backingimage.Errorf(backingimage.NotFound, "claim %s/%s, for which %s stands in, was deleted", of.Namespace, of.Name, claim.Name)
	}
	return is, err
}
