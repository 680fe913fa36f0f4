package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BackupTargetSpec says where backups are kept.
//
// +kubebuilder:validation:XValidation:rule="self.url == oldSelf.url",message="url is immutable: make another target for another place"
type BackupTargetSpec struct {
	// URL of the place: s3://bucket/prefix, gs://bucket/prefix, azblob://container/prefix, or file:///directory, which every node and the
	// controller must have mounted.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	URL string `json:"url"`
	// Secret with the keys of the object store, its endpoint and region, and the key PLINTH_BACKUP_KEY when backups are encrypted.
	// +optional
	Secret string `json:"secret,omitempty"`
	// SecretNamespace of the secret; default when absent.
	// +optional
	SecretNamespace string `json:"secretNamespace,omitempty"`
	// UploadBytesPerSecond that each node sends at most; 0 for no limit.
	// +optional
	// +kubebuilder:validation:Minimum=0
	UploadBytesPerSecond int64 `json:"uploadBytesPerSecond,omitempty"`
	// DownloadBytesPerSecond that each node receives at most; 0 for no limit.
	// +optional
	// +kubebuilder:validation:Minimum=0
	DownloadBytesPerSecond int64 `json:"downloadBytesPerSecond,omitempty"`
	// Concurrency is how many blocks of one backup or restore are on their way at once; 4 when absent.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	Concurrency int32 `json:"concurrency,omitempty"`
	// CollectGarbage says whether what no backup needs any longer is removed from the place; true when absent. One cluster's doing so is
	// enough where several share a place, and several do no harm.
	// +optional
	// +kubebuilder:default=true
	CollectGarbage *bool `json:"collectGarbage,omitempty"`
}

// BackupTargetStatus is what the controller found.
type BackupTargetStatus struct {
	// Encrypted is true when the backups there are.
	// +optional
	Encrypted bool `json:"encrypted,omitempty"`
	// CheckedTime is when the place was last looked at.
	// +optional
	CheckedTime *metav1.Time `json:"checkedTime,omitempty"`
	// CollectedTime is when garbage was last collected.
	// +optional
	CollectedTime *metav1.Time `json:"collectedTime,omitempty"`
	// Conditions: Ready, when the place can be read and written with the secret.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// BackupTarget is an object store, or a directory, that backups are kept in.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pbt,categories=plinth
// +kubebuilder:printcolumn:name="URL",type=string,JSONPath=`.spec.url`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Encrypted",type=boolean,JSONPath=`.status.encrypted`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BackupTarget struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BackupTargetSpec   `json:"spec"`
	Status BackupTargetStatus `json:"status,omitempty"`
}

// BackupTargetList is a list of BackupTargets.
// +kubebuilder:object:root=true
type BackupTargetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BackupTarget `json:"items"`
}
