package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// VolumeState is where a volume is in its life.
type VolumeState string

const (
	VolumePending VolumeState = "pending" // waits for its image's copy, or for its agent
	VolumeReady   VolumeState = "ready"   // its file exists; it can be attached
	VolumeFailed  VolumeState = "failed"  // see message
)

// VolumeFinalizer keeps a Volume until its agent has removed its file.
const VolumeFinalizer = "plinth.dev/volume"

// VolumeImage names the image a volume starts from.
type VolumeImage struct {
	// Name of the BackingImage.
	Name string `json:"name"`
	// UID of the BackingImage: one created anew under the name is another image.
	UID string `json:"uid"`
}

// VolumeClaim names the claim (PersistentVolumeClaim) for which a volume was made.
type VolumeClaim struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// UID of the claim; empty when it could not be asked.
	// +optional
	UID types.UID `json:"uid,omitempty"`
}

// VolumeRestore is a backup that a volume's content is restored from.
type VolumeRestore struct {
	// Target is the name of the BackupTarget.
	Target string `json:"target"`
	// Backup is the backup's ID there.
	Backup string `json:"backup"`
}

// VolumeSpec is what the CSI controller decided. Only capacityBytes changes after creation, and only upwards.
//
// +kubebuilder:validation:XValidation:rule="self.diskUUID == oldSelf.diskUUID && self.name == oldSelf.name",message="a volume's disk and name are immutable"
// +kubebuilder:validation:XValidation:rule="self.capacityBytes >= oldSelf.capacityBytes",message="capacityBytes: a volume cannot shrink"
// +kubebuilder:validation:XValidation:rule="has(self.image) == has(oldSelf.image) && (!has(self.image) || self.image == oldSelf.image)",message="a volume's image is immutable"
type VolumeSpec struct {
	// Name that the orchestrator asked for, e.g. pvc-<uid>. The object's name is derived from it.
	Name string `json:"name"`
	// CapacityBytes is the wanted size of the block device, in bytes.
	// +kubebuilder:validation:Minimum=1
	CapacityBytes int64 `json:"capacityBytes"`
	// DiskUUID of the disk that holds the volume; empty for one that many nodes read.
	DiskUUID string `json:"diskUUID"`
	// NodeName of the disk's node; empty for a disk that every node reaches.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// ReadOnlyMany is set on a volume that is read, and never written, on any number of nodes at once: each makes a clone of its image's
	// copy there when it is needed. It has no disk and no node.
	// +optional
	ReadOnlyMany bool `json:"readOnlyMany,omitempty"`
	// Image that the volume's content began as, its own or that of the volume or snapshot it was made from; absent for an empty volume.
	// +optional
	Image *VolumeImage `json:"image,omitempty"`
	// SourceVolume is the name of the Volume object that this one was cloned from.
	// +optional
	SourceVolume string `json:"sourceVolume,omitempty"`
	// SourceSnapshot is the name of the Snapshot object that this volume was made from.
	// +optional
	SourceSnapshot string `json:"sourceSnapshot,omitempty"`
	// SourceDisk is the UUID of the disk that holds the source volume or snapshot, where that is another disk than the volume's own: the
	// content is then received from there.
	// +optional
	SourceDisk string `json:"sourceDisk,omitempty"`
	// SourceHandle is the handle of the snapshot that was asked for as the volume's content, of whatever type, e.g.
	// snap://volume/snapshot.
	// +optional
	SourceHandle string `json:"sourceHandle,omitempty"`
	// Claim for which the orchestrator asked, where it says so; events about the volume are told there.
	// +optional
	Claim *VolumeClaim `json:"claim,omitempty"`
	// Restore names the backup that the volume's content is restored from.
	// +optional
	Restore *VolumeRestore `json:"restore,omitempty"`
	// Parameters of the StorageClass as CreateVolume received them, for comparing a retry with the first call.
	// +optional
	Parameters map[string]string `json:"parameters,omitempty"`
	// Partition of the image that Filesystem mode mounts; 0 for the whole device.
	// +optional
	Partition int32 `json:"partition,omitempty"`
	// MkfsParams are further arguments of mkfs for an empty volume.
	// +optional
	MkfsParams string `json:"mkfsParams,omitempty"`
}

// VolumeStatus is what the volume's agent did.
type VolumeStatus struct {
	// +optional
	State VolumeState `json:"state,omitempty"`
	// CapacityBytes of the block device, in bytes.
	// +optional
	CapacityBytes int64 `json:"capacityBytes,omitempty"`
	// Reason is the Kind of the last error, empty when there is none.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message says in a sentence what is happening or what is wrong.
	// +optional
	Message string `json:"message,omitempty"`
	// Device is the block device while the volume is attached, empty otherwise.
	// +optional
	Device string `json:"device,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// Volume is a provisioned volume, pinned to a disk.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pvol,categories=plinth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.diskUUID`
// +kubebuilder:printcolumn:name="Claim",type=string,JSONPath=`.spec.claim.name`
// +kubebuilder:printcolumn:name="Namespace",type=string,JSONPath=`.spec.claim.namespace`,priority=1
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image.name`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Capacity",type=integer,format=int64,JSONPath=`.status.capacityBytes`
// +kubebuilder:printcolumn:name="Device",type=string,JSONPath=`.status.device`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Volume struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   VolumeSpec   `json:"spec"`
	Status VolumeStatus `json:"status,omitempty"`
}

// VolumeList is a list of Volumes.
// +kubebuilder:object:root=true
type VolumeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Volume `json:"items"`
}
