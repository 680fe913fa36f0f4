package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BackingImageCopySpec is the controller's decision that a disk shall hold a copy.
//
// +kubebuilder:validation:XValidation:rule="self.image == oldSelf.image && self.imageUID == oldSelf.imageUID && self.diskUUID == oldSelf.diskUUID",message="a copy's image and disk are immutable"
type BackingImageCopySpec struct {
	// Image is the BackingImage's name.
	Image string `json:"image"`
	// ImageUID is the BackingImage's UID: an image deleted and created anew under its name is another image.
	ImageUID string `json:"imageUID"`
	// DiskUUID is the disk, by the UUID stored on it.
	DiskUUID string `json:"diskUUID"`
	// NodeName is the node whose agent makes the copy.
	// +optional
	NodeName string `json:"nodeName,omitempty"`
	// Origin is set on the one copy that fetches from the image's source; the others copy from it.
	// +optional
	Origin bool `json:"origin,omitempty"`
	// VerifyRequestedTime is when somebody last asked for all of the copy to be read and compared with its manifest. It is done
	// when status.verifiedRequestTime is not before it.
	// +optional
	VerifyRequestedTime *metav1.MicroTime `json:"verifyRequestedTime,omitempty"`
	// CleanupRequested asks for the copy to go now and not after the cleanup wait. The controller removes the copy, or, where
	// the image needs it, takes the request back and says in status.message why.
	// +optional
	CleanupRequested bool `json:"cleanupRequested,omitempty"`
}

// BackingImageCopyStatus is what the agent found and does.
type BackingImageCopyStatus struct {
	// +optional
	State CopyState `json:"state,omitempty"`
	// Reason is the Kind of the last error, empty when there is none.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message says in a sentence what is happening or what is wrong.
	// +optional
	Message string `json:"message,omitempty"`
	// Progress in percent.
	// +optional
	Progress int32 `json:"progress,omitempty"`
	// BytesDone and BytesTotal count what the present step reads; BytesTotal is 0 when the source does not tell.
	// +optional
	BytesDone int64 `json:"bytesDone,omitempty"`
	// +optional
	BytesTotal int64 `json:"bytesTotal,omitempty"`
	// BytesPerSecond is the rate over the last seconds.
	// +optional
	BytesPerSecond int64 `json:"bytesPerSecond,omitempty"`
	// ETASeconds is the time left at that rate, in seconds.
	// +optional
	ETASeconds int64 `json:"etaSeconds,omitempty"`
	// Warning says what of the source was left out; empty when nothing was.
	// +optional
	Warning string `json:"warning,omitempty"`
	// +optional
	Format string `json:"format,omitempty"`
	// ResolvedSource is the source with what its name stood for when it was fetched.
	// +optional
	ResolvedSource string `json:"resolvedSource,omitempty"`
	// Size of the source file in bytes.
	// +optional
	Size int64 `json:"size,omitempty"`
	// VirtualSize in bytes; known as soon as the source's first bytes are.
	// +optional
	VirtualSize int64 `json:"virtualSize,omitempty"`
	// RealSize is what the copy occupies, in bytes.
	// +optional
	RealSize int64 `json:"realSize,omitempty"`
	// Checksum is the SHA-512 of the source file, in hexadecimal; empty where there is none.
	// +optional
	Checksum string `json:"checksum,omitempty"`
	// ContentDigest is the BLAKE3 root over the raw content.
	// +optional
	ContentDigest string `json:"contentDigest,omitempty"`
	// Attempts counts fetches that ended in an error since the last success.
	// +optional
	Attempts int32 `json:"attempts,omitempty"`
	// NextTryTime is when a failed copy will be tried again; absent when trying again cannot help.
	// +optional
	NextTryTime *metav1.Time `json:"nextTryTime,omitempty"`
	// LastUsedTime is when a volume last was made from the copy, within a few minutes. The controller writes it.
	// +optional
	LastUsedTime *metav1.Time `json:"lastUsedTime,omitempty"`
	// LastVerifiedTime is when all of the copy's bytes were last read and compared with the manifest; verifyResult says with what
	// result.
	// +optional
	LastVerifiedTime *metav1.Time `json:"lastVerifiedTime,omitempty"`
	// VerifiedRequestTime is the spec.verifyRequestedTime that the last verification answers.
	// +optional
	VerifiedRequestTime *metav1.MicroTime `json:"verifiedRequestTime,omitempty"`
	// VerifyResult says in a sentence what the last verification found and what came of it.
	// +optional
	VerifyResult string `json:"verifyResult,omitempty"`
	// BadChunks are the chunks, of 2 MiB each and counted from 0, that are known to be damaged; the first 64 of them. The copy is
	// not cloned while there are any.
	// +optional
	BadChunks []int64 `json:"badChunks,omitempty"`
	// +optional
	LastStateTransitionTime metav1.Time `json:"lastStateTransitionTime,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// BackingImageCopy is one copy of one image on one disk. Its existence is the wish; its status is what the node found.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,path=backingimagecopies,shortName=bic,categories=plinth
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.spec.image`
// +kubebuilder:selectablefield:JSONPath=`.spec.diskUUID`
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Progress",type=integer,format=int32,JSONPath=`.status.progress`
// +kubebuilder:printcolumn:name="ETA-s",type=integer,format=int64,JSONPath=`.status.etaSeconds`
// +kubebuilder:printcolumn:name="Disk",type=string,JSONPath=`.spec.diskUUID`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BackingImageCopy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BackingImageCopySpec   `json:"spec"`
	Status BackingImageCopyStatus `json:"status,omitempty"`
}

// BackingImageCopyList is a list of BackingImageCopies.
// +kubebuilder:object:root=true
type BackingImageCopyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BackingImageCopy `json:"items"`
}
