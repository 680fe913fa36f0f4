// Package cluster reaches what only a whole Kubernetes cluster has beside Plinth's own kinds: its Events, in which people read what
// happens (Events), its PersistentVolumeClaims (Claims, Storage) and its Nodes (Nodes). An embedded API has none of them; Serves tells which
// it is. Each kind has a small client of its own (Resource): client-go's links every API that there is.
package cluster

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/store"
)

// Serves reports whether the API has a resource of the core group, like secrets: a cluster's has, an embedded one has not. NotReady
// while the API does not say.
func Serves(cfg *rest.Config, resource string) (bool, error) {
	client, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return false, fmt.Errorf("make API client: %w", err)
	}
	core, err := client.ServerResourcesForGroupVersion("v1")
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, backingimage.Errorf(backingimage.NotReady, "ask the API whether it has %s: %w", resource, err)
	}
	for _, r := range core.APIResources {
		if r.Name == resource {
			return true, nil
		}
	}
	return false, nil
}

// askEvery is how often an API that is away is asked what it serves.
const askEvery = 5 * time.Second

// WaitServes is Serves, and waits while the API does not say; an error is ctx's.
func WaitServes(ctx context.Context, cfg *rest.Config, resource string) (served bool, err error) {
	err = wait.PollUntilContextCancel(ctx, askEvery, true, func(context.Context) (bool, error) {
		var err error
		served, err = Serves(cfg, resource)
		return err == nil, nil
	})
	return served, err
}

// In is a kind's typed client in a namespace; "" is all of them, or none for a kind that has none.
type In[T store.Object, L runtime.Object] func(namespace string) *store.Resource[T, L]

// Resource makes the typed client of one of Kubernetes' kinds. It does not connect.
func Resource[T store.Object, L runtime.Object](cfg *rest.Config, version schema.GroupVersion, plural string, object func() T, list func() L) (In[T, L], error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(version, object(), list())
	metav1.AddToGroupVersion(scheme, version)
	cfg = rest.CopyConfig(cfg)
	cfg.APIPath, cfg.GroupVersion, cfg.QPS = "/apis", &version, -1 // who asks often limits himself
	if version.Group == "" {
		cfg.APIPath = "/api"
	}
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make API client for %s: %w", plural, err)
	}
	codec := runtime.NewParameterCodec(scheme)
	return func(namespace string) *store.Resource[T, L] {
		return gentype.NewClientWithList(plural, client, codec, namespace, object, list)
	}, nil
}

// Informer makes a cache of a client's objects that a field selector finds; slim leaves out what nobody looks at. It starts nothing.
func Informer[T store.Object, L runtime.Object](client *store.Resource[T, L], example T, fieldSelector string, slim cache.TransformFunc) cache.SharedIndexInformer {
	informer := cache.NewSharedIndexInformer(store.Lists(client, fieldSelector), example, 0, nil)
	if err := informer.SetTransform(slim); err != nil {
		panic(err) // only one that has started refuses
	}
	return informer
}
