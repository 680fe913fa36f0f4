package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// DiskSpec places a disk and says what may be put on it. The agent writes type, nodeName and path; users write the rest.
type DiskSpec struct {
	// Type of the disk's engine.
	// +optional
	// +kubebuilder:default=reflink
	// +kubebuilder:validation:Enum=reflink
	Type string `json:"type,omitempty"`
	// NodeName of the node that holds the disk; empty for a disk that every node reaches.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// Path of the disk's directory on its node.
	// +optional
	Path string `json:"path,omitempty"`
	// Tags that images' and volumes' diskSelector can ask for.
	// +optional
	Tags []string `json:"tags,omitempty"`
	// AllowScheduling of new copies and volumes.
	// +optional
	// +kubebuilder:default=true
	AllowScheduling *bool `json:"allowScheduling,omitempty"`
	// EvictionRequested moves every copy away.
	// +optional
	EvictionRequested bool `json:"evictionRequested,omitempty"`
}

// OrphanKind is what an orphan is.
type OrphanKind string

const (
	OrphanVolume   OrphanKind = "volume"   // reported, and never removed by machine: it may be the only copy of somebody's data
	OrphanSnapshot OrphanKind = "snapshot" // reported, and never removed by machine, like a volume
	OrphanImage    OrphanKind = "image"    // a copy of an image; the agent is removing it, or its log says why it cannot
)

// MaxOrphans bounds status.orphans.
const MaxOrphans = 1000

// Orphan is a directory on a disk that no object describes.
type Orphan struct {
	Kind OrphanKind `json:"kind"`
	// Name of the volume or snapshot, or UID of the image.
	Name string `json:"name"`
	// Path of the directory on the disk's node.
	Path string `json:"path"`
	// UsedBytes are allocated to its files; what they share with others is counted in full.
	// +optional
	UsedBytes int64 `json:"usedBytes,omitempty"`
}

// DiskStatus is what the agent measured.
type DiskStatus struct {
	// CapacityBytes of the filesystem.
	// +optional
	CapacityBytes int64 `json:"capacityBytes,omitempty"`
	// AvailableBytes of the filesystem.
	// +optional
	AvailableBytes int64 `json:"availableBytes,omitempty"`
	// Filesystem: xfs or btrfs.
	// +optional
	Filesystem string `json:"filesystem,omitempty"`
	// Pool is true when the disk is an XFS file, loop-mounted, because its directory cannot reflink.
	// +optional
	Pool bool `json:"pool,omitempty"`
	// Orphans are files on the disk that no object describes.
	// +optional
	// +kubebuilder:validation:MaxItems=1000
	Orphans []Orphan `json:"orphans,omitempty"`
	// Conditions: Ready, Full.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Disk is a place for copies and volumes; its name is the UUID stored on it.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pdisk,categories=plinth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Path",type=string,JSONPath=`.spec.path`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Full",type=string,JSONPath=`.status.conditions[?(@.type=="Full")].status`
// +kubebuilder:printcolumn:name="Schedulable",type=boolean,JSONPath=`.spec.allowScheduling`
// +kubebuilder:printcolumn:name="Capacity",type=integer,format=int64,JSONPath=`.status.capacityBytes`
// +kubebuilder:printcolumn:name="Available",type=integer,format=int64,JSONPath=`.status.availableBytes`
// +kubebuilder:printcolumn:name="Filesystem",type=string,JSONPath=`.status.filesystem`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Disk struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   DiskSpec   `json:"spec,omitempty"`
	Status DiskStatus `json:"status,omitempty"`
}

// DiskList is a list of Disks.
// +kubebuilder:object:root=true
type DiskList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Disk `json:"items"`
}
