// Package kubernetes keeps credentials as Kubernetes' Secrets. It is apart from package credential because a client of Kubernetes is dear to
// link, and not every program that reads credentials has one.
package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/credential"
)

// Store is a credential.Store of Kubernetes' Secrets. Reading takes "get" on the secrets that images name; Put, Delete and List are for
// the namespace in which Plinth keeps those that come with CSI calls.
type Store struct {
	in cluster.In[*corev1.Secret, *corev1.SecretList]
}

var _ credential.Store = (*Store)(nil)

// madeLabel marks the Secrets that Plinth made, the only ones that it changes, deletes or lists.
const (
	madeLabel = "app.kubernetes.io/managed-by"
	madeValue = "plinth"
)

// New makes the Store of a cluster. It does not connect.
func New(cfg *rest.Config) (*Store, error) {
	in, err := cluster.Resource(cfg, corev1.SchemeGroupVersion, "secrets",
		func() *corev1.Secret { return &corev1.Secret{} }, func() *corev1.SecretList { return &corev1.SecretList{} })
	return &Store{in: in}, err
}

// Get implements credential.Reader.
func (k *Store) Get(ctx context.Context, ref credential.Ref) (map[string][]byte, error) {
	secret, err := k.in(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, classify("read", ref, err)
	}
	return secret.Data, nil
}

// Put implements credential.Store. A Secret of that name that Plinth did not make is a Conflict.
func (k *Store) Put(ctx context.Context, ref credential.Ref, data map[string][]byte) error {
	wanted := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: ref.Name, Namespace: ref.Namespace, Labels: map[string]string{madeLabel: madeValue}}, Data: data}
	_, err := k.in(ref.Namespace).Create(ctx, wanted, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return classify("write", ref, err)
	}
	existing, err := k.made(ctx, ref)
	if err != nil {
		return err
	}
	wanted.ResourceVersion = existing.ResourceVersion
	_, err = k.in(ref.Namespace).Update(ctx, wanted, metav1.UpdateOptions{})
	return classify("write", ref, err)
}

// Delete implements credential.Store. A Secret that Plinth did not make is a Conflict.
func (k *Store) Delete(ctx context.Context, ref credential.Ref) error {
	existing, err := k.made(ctx, ref)
	if err != nil {
		return backingimage.IgnoreNotFound(err)
	}
	err = k.in(ref.Namespace).Delete(ctx, ref.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(existing.UID))})
	return backingimage.IgnoreNotFound(classify("delete", ref, err))
}

// made returns a Secret that Plinth made.
func (k *Store) made(ctx context.Context, ref credential.Ref) (*corev1.Secret, error) {
	secret, err := k.in(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, classify("read", ref, err)
	}
	if secret.Labels[madeLabel] != madeValue {
		return nil, backingimage.Errorf(backingimage.Conflict, "secret %s is not Plinth's (it lacks the label %s=%s); rename or delete it", ref, madeLabel, madeValue)
	}
	return secret, nil
}

// List implements credential.Store; it lists what Plinth made.
func (k *Store) List(ctx context.Context) ([]credential.Ref, error) {
	list, err := k.in(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: madeLabel + "=" + madeValue})
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	var refs []credential.Ref
	for _, s := range list.Items {
		refs = append(refs, credential.Ref{Namespace: s.Namespace, Name: s.Name})
	}
	slices.SortFunc(refs, func(a, b credential.Ref) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return refs, nil
}

// classify gives an API server's error its Kind. No message of such a server holds a secret's content.
func classify(action string, ref credential.Ref, err error) error {
	kind := backingimage.Internal
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s secret %s: %w", action, ref, err)
	case apierrors.IsNotFound(err):
		return backingimage.Errorf(backingimage.NotFound, "there is no secret %s: make it with \"kubectl create secret generic %s --namespace %s --from-file=…\"", ref, ref.Name, ref.Namespace)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return backingimage.Errorf(backingimage.Precondition, "%s secret %s: %w; let Plinth's service account do it with a Role in namespace %s", action, ref, err, ref.Namespace)
	case apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), apierrors.IsServiceUnavailable(err), apierrors.IsTooManyRequests(err), apierrors.IsConflict(err):
		kind = backingimage.NotReady
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		kind = backingimage.Invalid
	}
	return backingimage.Errorf(kind, "%s secret %s: %w", action, ref, err)
}
