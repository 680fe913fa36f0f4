package doctor

import (
	"context"
	"fmt"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/store"
)

// Take reads a Snapshot, but for its version and time. Its errors are the API's.
func Take(ctx context.Context, cfg *rest.Config, driver string) (Snapshot, error) {
	s := Snapshot{Driver: driver}
	client, err := store.NewClient(cfg)
	if err != nil {
		return s, err
	}
	for _, read := range []func() error{
		func() error { return list(ctx, "BackingImage", client.Images, &s.Images) },
		func() error { return list(ctx, "BackingImageCopy", client.Copies, &s.Copies) },
		func() error { return list(ctx, "StorageNode", client.Nodes, &s.Nodes) },
		func() error { return list(ctx, "Disk", client.Disks, &s.Disks) },
		func() error { return list(ctx, "Volume", client.Volumes, &s.Volumes) },
	} {
		if err := read(); err != nil {
			return s, err
		}
	}
	whole, err := cluster.Serves(cfg, "nodes")
	if err == nil && whole {
		s.Kubernetes, err = takeKubernetes(ctx, cfg, driver)
	}
	return s, err
}

// list reads all objects of a kind.
func list[T store.Object, L runtime.Object](ctx context.Context, kind string, from *store.Resource[T, L], into *[]T) error {
	all, err := from.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list %s: %w", kind, err)
	}
	return meta.EachListItem(all, func(o runtime.Object) error { *into = append(*into, o.(T)); return nil })
}

// takeKubernetes reads what a cluster has; what this account may not read is left out.
func takeKubernetes(ctx context.Context, cfg *rest.Config, driver string) (*Kubernetes, error) {
	drivers, err := cluster.Resource(cfg, storagev1.SchemeGroupVersion, "csidrivers", func() *storagev1.CSIDriver { return &storagev1.CSIDriver{} }, func() *storagev1.CSIDriverList { return &storagev1.CSIDriverList{} })
	if err != nil {
		return nil, err
	}
	classes, err := cluster.NewClassesClient(cfg)
	if err != nil {
		return nil, err
	}
	claims, err := cluster.NewClaimsClient(cfg)
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{Unread: map[string]string{}}
	for _, read := range []struct {
		kind string
		read func() error
	}{
		{"CSIDriver", func() (err error) {
			k.Driver, err = drivers("").Get(ctx, driver, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				k.Driver, err = nil, nil
			}
			return err
		}},
		{"StorageClass", func() error { return list(ctx, "StorageClass", classes(""), &k.Classes) }},
		{"PersistentVolumeClaim", func() error { return list(ctx, "PersistentVolumeClaim", claims(""), &k.Claims) }},
	} {
		err := read.read()
		if apierrors.IsForbidden(err) {
			k.Unread[read.kind] = err.Error()
		} else if err != nil {
			return nil, fmt.Errorf("read %s: %w", read.kind, err)
		}
	}
	return k, nil
}
