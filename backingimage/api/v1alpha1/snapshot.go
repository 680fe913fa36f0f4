package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SnapshotType is what a snapshot is for.
// +kubebuilder:validation:Enum=snap;bak;clone
type SnapshotType string

const (
	SnapshotSnap   SnapshotType = "snap"  // somebody asked for it
	SnapshotBackup SnapshotType = "bak"   // a backup is made of it
	SnapshotClone  SnapshotType = "clone" // a volume on another disk is being made of it; it goes when that is made
)

// SnapshotState is where a snapshot is in its life.
type SnapshotState string

const (
	SnapshotPending SnapshotState = "pending" // waits for its agent
	SnapshotReady   SnapshotState = "ready"   // its file exists
	SnapshotFailed  SnapshotState = "failed"  // see its Ready condition
)

// SnapshotFinalizer keeps a Snapshot until its agent has removed its file.
const SnapshotFinalizer = "plinth.dev/snapshot"

// SnapshotSpec is what the CSI controller decided. Only accessTokens change, and nodeName when the disk is plugged into another node.
//
// +kubebuilder:validation:XValidation:rule="self.name == oldSelf.name && self.volume == oldSelf.volume && self.type == oldSelf.type && self.diskUUID == oldSelf.diskUUID",message="a snapshot is immutable; delete it and take another"
// +kubebuilder:validation:XValidation:rule="(self.type == 'clone') == has(self.targetVolume)",message="targetVolume: is for snapshots of type clone, and needed there"
type SnapshotSpec struct {
	// Name that the orchestrator asked for, e.g. snapshot-<uid>. The object's name is derived from it.
	// +kubebuilder:validation:MinLength=1
	Name string `json:"name"`
	// Volume is the name of the Volume object whose point in time this is. The volume may be gone.
	// +kubebuilder:validation:MinLength=1
	Volume string `json:"volume"`
	// Type says what the snapshot is for: snap, somebody asked for it; bak, a backup is made of it; clone, a volume on another
	// disk is being made of it.
	Type SnapshotType `json:"type"`
	// DiskUUID of the disk that holds the volume and the snapshot.
	// +kubebuilder:validation:MinLength=1
	DiskUUID string `json:"diskUUID"`
	// NodeName of the disk's node; empty for a disk that every node reaches.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// Image that the volume's content began as; absent when it began empty.
	// +optional
	Image *VolumeImage `json:"image,omitempty"`
	// AccessTokens let who knows one ask the snapshot's node which of its blocks have data, or differ from another snapshot's. Who
	// writes them keeps the token; only its hash is here.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=sha256
	AccessTokens []AccessToken `json:"accessTokens,omitempty"`
	// TargetVolume is the name of the Volume object that a snapshot of type clone is for.
	// +optional
	TargetVolume string `json:"targetVolume,omitempty"`
}

// SnapshotStatus is what the snapshot's agent did.
type SnapshotStatus struct {
	// +optional
	State SnapshotState `json:"state,omitempty"`
	// Bytes is the size of the volume at that point in time, and of what is restored at the least, in bytes.
	// +optional
	Bytes int64 `json:"bytes,omitempty"`
	// RealBytes is how much of the disk the snapshot keeps from being freed, in bytes: what it has of data, whether it shares that with others or
	// not.
	// +optional
	RealBytes int64 `json:"realBytes,omitempty"`
	// CreationTime is when the point in time was taken.
	// +optional
	CreationTime *metav1.MicroTime `json:"creationTime,omitempty"`
	// Conditions: Ready, with what is happening or what is wrong.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// Snapshot is a point in time of a volume, on the same disk. It needs the volume no longer.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=psnap,categories=plinth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.diskUUID`
// +kubebuilder:selectablefield:JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Bytes",type=integer,format=int64,JSONPath=`.status.bytes`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Snapshot struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   SnapshotSpec   `json:"spec"`
	Status SnapshotStatus `json:"status,omitempty"`
}

// SnapshotList is a list of Snapshots.
// +kubebuilder:object:root=true
type SnapshotList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Snapshot `json:"items"`
}
