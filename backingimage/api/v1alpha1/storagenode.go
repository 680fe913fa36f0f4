package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	// Cordoned is true while the node's Kubernetes Node is unschedulable: copies are moved away as for evictionRequested.
	// +optional
	Cordoned bool `json:"cordoned,omitempty"`
	// Conditions: Ready.
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
// +kubebuilder:printcolumn:name="Schedulable",type=boolean,JSONPath=`.spec.allowScheduling`
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
