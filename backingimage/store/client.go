// Package store reads and writes Plinth's objects through a Kubernetes API: typed clients made with client-go's gentype,
// and for controllers a cache of each kind that a watch keeps (Kind). Whether the API server is a cluster's or the one
// embedded in this process makes no difference here.
package store

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/gentype"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Object is one of the pointer types of v1alpha1.
type Object interface {
	comparable
	runtime.Object
	metav1.Object
}

// Resource is the typed client of one kind.
type Resource[T Object, L runtime.Object] = gentype.ClientWithList[T, L]

// Client has a typed client for each kind.
type Client struct {
	Images    *Resource[*v1alpha1.BackingImage, *v1alpha1.BackingImageList]
	Copies    *Resource[*v1alpha1.BackingImageCopy, *v1alpha1.BackingImageCopyList]
	Nodes     *Resource[*v1alpha1.StorageNode, *v1alpha1.StorageNodeList]
	Disks     *Resource[*v1alpha1.Disk, *v1alpha1.DiskList]
	Volumes   *Resource[*v1alpha1.Volume, *v1alpha1.VolumeList]
	Snapshots *Resource[*v1alpha1.Snapshot, *v1alpha1.SnapshotList]
	Targets   *Resource[*v1alpha1.BackupTarget, *v1alpha1.BackupTargetList]
	Backups   *Resource[*v1alpha1.Backup, *v1alpha1.BackupList]
	Policies  *Resource[*v1alpha1.BackupPolicy, *v1alpha1.BackupPolicyList]
}

// NewClient makes the typed clients. It does not connect.
func NewClient(cfg *rest.Config) (*Client, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.APIPath = "/apis"
	cfg.GroupVersion = &v1alpha1.GroupVersion
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	if cfg.UserAgent == "" {
		cfg.UserAgent = "plinth"
	}
	client, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	codec := runtime.NewParameterCodec(scheme)
	return &Client{
		Images: gentype.NewClientWithList("backingimages", client, codec, "",
			func() *v1alpha1.BackingImage { return &v1alpha1.BackingImage{} },
			func() *v1alpha1.BackingImageList { return &v1alpha1.BackingImageList{} }),
		Copies: gentype.NewClientWithList("backingimagecopies", client, codec, "",
			func() *v1alpha1.BackingImageCopy { return &v1alpha1.BackingImageCopy{} },
			func() *v1alpha1.BackingImageCopyList { return &v1alpha1.BackingImageCopyList{} }),
		Nodes: gentype.NewClientWithList("storagenodes", client, codec, "",
			func() *v1alpha1.StorageNode { return &v1alpha1.StorageNode{} },
			func() *v1alpha1.StorageNodeList { return &v1alpha1.StorageNodeList{} }),
		Disks: gentype.NewClientWithList("disks", client, codec, "",
			func() *v1alpha1.Disk { return &v1alpha1.Disk{} },
			func() *v1alpha1.DiskList { return &v1alpha1.DiskList{} }),
		Volumes: gentype.NewClientWithList("volumes", client, codec, "",
			func() *v1alpha1.Volume { return &v1alpha1.Volume{} },
			func() *v1alpha1.VolumeList { return &v1alpha1.VolumeList{} }),
		Snapshots: gentype.NewClientWithList("snapshots", client, codec, "",
			func() *v1alpha1.Snapshot { return &v1alpha1.Snapshot{} },
			func() *v1alpha1.SnapshotList { return &v1alpha1.SnapshotList{} }),
		Targets: gentype.NewClientWithList("backuptargets", client, codec, "",
			func() *v1alpha1.BackupTarget { return &v1alpha1.BackupTarget{} },
			func() *v1alpha1.BackupTargetList { return &v1alpha1.BackupTargetList{} }),
		Backups: gentype.NewClientWithList("backups", client, codec, "",
			func() *v1alpha1.Backup { return &v1alpha1.Backup{} },
			func() *v1alpha1.BackupList { return &v1alpha1.BackupList{} }),
		Policies: gentype.NewClientWithList("backuppolicies", client, codec, "",
			func() *v1alpha1.BackupPolicy { return &v1alpha1.BackupPolicy{} },
			func() *v1alpha1.BackupPolicyList { return &v1alpha1.BackupPolicyList{} }),
	}, nil
}
