package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// StorageNodeSpec is what users say of a node. The agent creates it with the defaults and never writes it again.
type StorageNodeSpec struct {
	// Tags that images' and volumes' nodeSelector can ask for.
	// +optional
	Tags []string `json:"tags,omitempty"`
	// AllowScheduling of new copies and volumes.
	// +optional
	// +kubebuilder:default=true
	AllowScheduling *bool `json:"allowScheduling,omitempty"`
	// EvictionRequested moves every copy away.
	// +optional
	EvictionRequested bool `json:"evictionRequested,omitempty"`
	// Disks that the agent opens beside those of its --disk flags, and makes where there are none yet.
	// +optional
	// +listType=map
	// +listMapKey=path
	// +kubebuilder:validation:MaxItems=128
	Disks []DiskWish `json:"disks,omitempty"`
}

// DiskWish asks a node's agent for a disk.
type DiskWish struct {
	// Path of the disk's directory on the node, absolute and without . and .. in it.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^(/[^/]+)+$`
	// +kubebuilder:validation:XValidation:rule="!self.contains('/../') && !self.contains('/./') && !self.endsWith('/..') && !self.endsWith('/.')",message="path: . and .. are not allowed in it"
	Path string `json:"path"`
	// PoolBytes is the size of the pool file that is made where the directory cannot reflink; 0 takes 80 % of the free space.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == 0 || self >= 536870912",message="poolBytes: a pool has at least 536870912 bytes (512 MiB); 0 takes 80 % of the free space"
	PoolBytes int64 `json:"poolBytes,omitempty"`
	// Tags that the disk gets when it is registered for the first time.
	// +optional
	Tags []string `json:"tags,omitempty"`
}

// NodeDisk is what came of a disk that flags or users name.
type NodeDisk struct {
	// Path of the disk's directory on the node.
	Path string `json:"path"`
	// UUID of the disk that is open there; with a reason, of the one that was last.
	// +optional
	UUID string `json:"uuid,omitempty"`
	// FromFlag is true when a --disk flag of the agent names it, which no user can take back.
	// +optional
	FromFlag bool `json:"fromFlag,omitempty"`
	// Reason why it is not open, in a word.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message why it is not open, with what to do.
	// +optional
	Message string `json:"message,omitempty"`
}

// WaitingReader is a volume for many readers that waits on a node for a copy of its image.
type WaitingReader struct {
	// Volume is the Volume's name.
	Volume string `json:"volume"`
	// ImageUID of the image.
	ImageUID string `json:"imageUID"`
	// DiskUUID of the disk of this node that shall get the copy.
	DiskUUID string `json:"diskUUID"`
}

// StorageNodeStatus is what the agent says of itself.
type StorageNodeStatus struct {
	// Version of the agent.
	// +optional
	Version string `json:"version,omitempty"`
	// Address where peers reach the agent, as host:port.
	// +optional
	Address string `json:"address,omitempty"`
	// PublicKeyHash of the agent's key, as sha256 in hexadecimal.
	// +optional
	PublicKeyHash string `json:"publicKeyHash,omitempty"`
	// LastHeartbeatTime is renewed every 20 s while the agent runs.
	// +optional
	LastHeartbeatTime metav1.Time `json:"lastHeartbeatTime,omitempty"`
	// Disks that flags and spec.disks name, and what came of each.
	// +optional
	// +listType=map
	// +listMapKey=path
	Disks []NodeDisk `json:"disks,omitempty"`
	// Cordoned is true while the node's Kubernetes Node is unschedulable: copies are moved away as for evictionRequested.
	// +optional
	Cordoned bool `json:"cordoned,omitempty"`
	// Waiting are the volumes for many readers that are being staged here and wait for a copy of their image.
	// +optional
	// +listType=map
	// +listMapKey=volume
	// +kubebuilder:validation:MaxItems=1000
	Waiting []WaitingReader `json:"waiting,omitempty"`
	// MachineUID is the UID of the Kubernetes Node of that name; empty for a machine that no cluster knew. The controller writes it.
	// +optional
	MachineUID types.UID `json:"machineUID,omitempty"`
	// Conditions: Ready; Drained while the node is cordoned or evicted; Removed when its machine is gone from the cluster.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// StorageNode is a machine that runs the agent.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=snode,categories=plinth
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Schedulable",type=boolean,JSONPath=`.spec.allowScheduling`
// +kubebuilder:printcolumn:name="Cordoned",type=boolean,JSONPath=`.status.cordoned`
// +kubebuilder:printcolumn:name="Drained",type=string,JSONPath=`.status.conditions[?(@.type=="Drained")].status`
// +kubebuilder:printcolumn:name="Evicting",type=boolean,JSONPath=`.spec.evictionRequested`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.status.address`,priority=1
// +kubebuilder:printcolumn:name="Heartbeat",type=date,JSONPath=`.status.lastHeartbeatTime`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type StorageNode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   StorageNodeSpec   `json:"spec,omitempty"`
	Status StorageNodeStatus `json:"status,omitempty"`
}

// StorageNodeList is a list of StorageNodes.
// +kubebuilder:object:root=true
type StorageNodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []StorageNode `json:"items"`
}
