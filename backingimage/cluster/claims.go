package cluster

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/store"
)

// Claims reads a cluster's PersistentVolumeClaims. It takes "get" on persistentvolumeclaims.
type Claims struct {
	in In[*corev1.PersistentVolumeClaim, *corev1.PersistentVolumeClaimList]
}

// NewClaims makes the reader of a cluster. It does not connect.
func NewClaims(cfg *rest.Config) (*Claims, error) {
	in, err := NewClaimsClient(cfg)
	return &Claims{in: in}, err
}

// Get returns a claim. NotFound; Precondition when this program may not read it.
func (c *Claims) Get(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	claim, err := c.in(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return nil, backingimage.Errorf(backingimage.Precondition, "read claim %s/%s: %w; give Plinth's service account the verb get on persistentvolumeclaims", namespace, name, err)
	}
	return claim, store.Classify("read", "claim", namespace+"/"+name, err)
}
