package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BackupState is where a backup is in its life.
type BackupState string

const (
	BackupPending    BackupState = "pending"     // waits for its point in time, or for an agent
	BackupInProgress BackupState = "in-progress" // is being written
	BackupReady      BackupState = "ready"       // is in the target, whole
	BackupFailed     BackupState = "failed"      // see its Ready condition; nothing of it is in the target
)

// BackupFinalizer keeps a Backup until it was removed from its target.
const BackupFinalizer = "plinth.dev/backup"

// BackupSpec says what is to be backed up, and where to.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a backup's spec is immutable; delete the backup and make another"
// +kubebuilder:validation:XValidation:rule="has(self.volume) != has(self.image)",message="a backup is of a volume or of an image: give exactly one of spec.volume and spec.image"
type BackupSpec struct {
	// Target is the name of the BackupTarget.
	// +kubebuilder:validation:MinLength=1
	Target string `json:"target"`
	// Volume is the name of the Volume object whose present content is backed up.
	// +optional
	Volume string `json:"volume,omitempty"`
	// Image is the name of the BackingImage that is backed up.
	// +optional
	Image string `json:"image,omitempty"`
	// Full reads all of the volume again instead of what changed since its last backup, and reads back what the target has of it, so that
	// what is damaged there is replaced.
	// +optional
	Full bool `json:"full,omitempty"`
	// Policy is the name of the BackupPolicy that made this backup, and that removes it.
	// +optional
	Policy string `json:"policy,omitempty"`
}

// BackupStatus is what became of a backup so far.
type BackupStatus struct {
	// +optional
	State BackupState `json:"state,omitempty"`
	// NodeName of the node whose agent writes it.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// DiskUUID of the disk that it is read from.
	// +optional
	DiskUUID string `json:"diskUUID,omitempty"`
	// Snapshot is the name of the Snapshot object that it is a copy of, while that is kept: until the volume's next backup.
	// +optional
	Snapshot string `json:"snapshot,omitempty"`
	// VolumeUID is the UID of the Volume object.
	// +optional
	VolumeUID string `json:"volumeUID,omitempty"`
	// Volume is what the volume was when its content was taken, and VolumeLabels its labels: they are kept in the backup.
	// +optional
	Volume *VolumeSpec `json:"volume,omitempty"`
	// +optional
	VolumeLabels map[string]string `json:"volumeLabels,omitempty"`
	// URL of the backup, as the StorageClass parameter fromBackup and source parameter backup-url take it.
	// +optional
	URL string `json:"url,omitempty"`
	// Base is the ID of the backup whose unchanged parts were taken over without reading them.
	// +optional
	Base string `json:"base,omitempty"`
	// Bytes is the size of what a restore gives.
	// +optional
	Bytes int64 `json:"bytes,omitempty"`
	// TakenTime is the moment that its content is of.
	// +optional
	TakenTime *metav1.MicroTime `json:"takenTime,omitempty"`
	// FinishedTime is when it was complete.
	// +optional
	FinishedTime *metav1.Time `json:"finishedTime,omitempty"`
	// Progress in percent of what has to be read.
	// +optional
	Progress int32 `json:"progress,omitempty"`
	// BytesTotal to be read or found unchanged, and BytesDone of them.
	// +optional
	BytesTotal int64 `json:"bytesTotal,omitempty"`
	// +optional
	BytesDone int64 `json:"bytesDone,omitempty"`
	// ReadBytes of the volume or image.
	// +optional
	ReadBytes int64 `json:"readBytes,omitempty"`
	// UploadedBytes to the target, compressed.
	// +optional
	UploadedBytes int64 `json:"uploadedBytes,omitempty"`
	// +optional
	BytesPerSecond int64 `json:"bytesPerSecond,omitempty"`
	// +optional
	ETASeconds int64 `json:"etaSeconds,omitempty"`
	// Conditions: Ready, with what is happening or what is wrong.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// Backup is a volume's content at one moment, or an image, in a backup target. Its UID is its ID there. Deleting the object removes the
// backup from the target.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pbackup,categories=plinth
// +kubebuilder:selectablefield:JSONPath=`.status.nodeName`
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.spec.target`
// +kubebuilder:printcolumn:name="Volume",type=string,JSONPath=`.spec.volume`
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Progress",type=integer,JSONPath=`.status.progress`
// +kubebuilder:printcolumn:name="Uploaded",type=integer,format=int64,JSONPath=`.status.uploadedBytes`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Backup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BackupSpec   `json:"spec"`
	Status BackupStatus `json:"status,omitempty"`
}

// BackupList is a list of Backups.
// +kubebuilder:object:root=true
type BackupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Backup `json:"items"`
}

// Final reports whether a backup is what it will stay: ready or failed.
func (b *Backup) Final() bool {
	return b.Status.State == BackupReady || b.Status.State == BackupFailed
}
