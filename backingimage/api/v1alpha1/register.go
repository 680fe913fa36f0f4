package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of every kind in this package.
var GroupVersion = schema.GroupVersion{Group: "plinth.dev", Version: "v1alpha1"}

// AddToScheme registers the kinds.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&BackingImage{}, &BackingImageList{},
		&BackingImageCopy{}, &BackingImageCopyList{},
		&StorageNode{}, &StorageNodeList{},
		&Disk{}, &DiskList{},
		&Volume{}, &VolumeList{},
		&Snapshot{}, &SnapshotList{},
		&BackupTarget{}, &BackupTargetList{},
		&Backup{}, &BackupList{},
		&BackupPolicy{}, &BackupPolicyList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
