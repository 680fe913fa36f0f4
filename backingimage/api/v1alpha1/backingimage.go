package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SourceType says where an image's bytes come from.
// +kubebuilder:validation:Enum=download;upload;export-from-volume;clone;restore
type SourceType string

const (
	SourceDownload SourceType = "download"
	SourceUpload   SourceType = "upload"
	SourceExport   SourceType = "export-from-volume"
	SourceClone    SourceType = "clone"
	SourceRestore  SourceType = "restore"
)

// Keys of BackingImageSpec.SourceParameters.
const (
	ParameterURL              = "url"                // download: http, https, s3 or oci
	ParameterSecret           = "secret"             // download: the name of the secret that says who asks
	ParameterSecretNamespace  = "secret-namespace"   // download: of the secret; "default" when absent
	ParameterProxy            = "proxy"              // download: URL of the proxy to go through
	ParameterEndpoint         = "endpoint"           // download from s3: URL of the server
	ParameterRegion           = "region"             // download from s3
	ParameterPathStyle        = "path-style"         // download from s3: "true" for http://server/bucket/key
	ParameterVolumeName       = "volume-name"        // export-from-volume
	ParameterExportType       = "export-type"        // export-from-volume: the format that a later download yields, raw or qcow2
	ParameterBackingImage     = "backing-image"      // clone: the image to clone
	ParameterEncryption       = "encryption"         // clone: "ignore" is the only value; the key is Longhorn's
	ParameterBackupURL        = "backup-url"         // restore
	ParameterBackupTargetName = "backup-target-name" // restore
	ParameterConcurrentLimit  = "concurrent-limit"   // restore
	ParameterRestoreFrom      = "restore-from"       // restore: RestoreFromBackup when absent
)

// Values of ParameterRestoreFrom.
const (
	RestoreFromBackup = "backup" // and from where the image came first only when the backup lacks some of it
	RestoreFromSource = "source" // from where the image came first
)

// BackingImageSpec is what users want of an image. The controller never writes it.
//
// +kubebuilder:validation:XValidation:rule="self.sourceType == oldSelf.sourceType",message="sourceType is immutable: delete the image and create it anew, or use another name"
// +kubebuilder:validation:XValidation:rule="has(self.sourceParameters) == has(oldSelf.sourceParameters) && (!has(self.sourceParameters) || self.sourceParameters == oldSelf.sourceParameters)",message="sourceParameters are immutable: delete the image and create it anew, or use another name"
// +kubebuilder:validation:XValidation:rule="has(self.checksum) == has(oldSelf.checksum) && (!has(self.checksum) || self.checksum == oldSelf.checksum)",message="checksum is immutable: delete the image and create it anew, or use another name"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'download' || (has(self.sourceParameters) && 'url' in self.sourceParameters && self.sourceParameters['url'].matches('^(?i)(https?|s3|oci)://[^/?#]+'))",message="sourceParameters.url: a download needs an http://, https://, s3:// or oci:// URL with a host, a bucket or a registry"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'download' || !has(self.sourceParameters) || !('url' in self.sourceParameters) || !self.sourceParameters['url'].matches('^(?i)(https?|s3)://[^/?#]*@|^(?i)oci://[^/?#]*@[^/?#]*/')",message="sourceParameters.url: a user name or password in the URL would be readable by everyone who can read the image; put it into a secret and name that with sourceParameters.secret"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'export-from-volume' || (has(self.sourceParameters) && 'volume-name' in self.sourceParameters)",message="sourceParameters.volume-name: export-from-volume needs the volume's name"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'export-from-volume' || !has(self.sourceParameters) || !('export-type' in self.sourceParameters) || self.sourceParameters['export-type'] in ['raw', 'qcow2']",message="sourceParameters.export-type: an export yields raw or qcow2"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'clone' || (has(self.sourceParameters) && 'backing-image' in self.sourceParameters)",message="sourceParameters.backing-image: clone needs the name of the image to clone"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'clone' || !has(self.sourceParameters) || !('encryption' in self.sourceParameters) || self.sourceParameters['encryption'] == 'ignore'",message="sourceParameters.encryption: images are not encrypted in this version; remove it, or set it to ignore"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'upload' || !has(self.sourceParameters) || size(self.sourceParameters) == 0",message="sourceParameters: an upload has none"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'restore' || (has(self.sourceParameters) && 'backup-url' in self.sourceParameters)",message="sourceParameters.backup-url: restore needs the backup's URL"
// +kubebuilder:validation:XValidation:rule="self.sourceType != 'restore' || !has(self.sourceParameters) || !('restore-from' in self.sourceParameters) || self.sourceParameters['restore-from'] in ['backup', 'source']",message="sourceParameters.restore-from: an image is restored from its backup, or from its source, where it was downloaded from"
type BackingImageSpec struct {
	// SourceType says where the bytes come from: download, upload, export-from-volume, clone or restore. Immutable.
	SourceType SourceType `json:"sourceType"`

	// SourceParameters of the source type. Immutable.
	// download: url (http, https, s3 or oci), secret and secret-namespace (who asks), proxy, and for s3 endpoint, region and
	// path-style. export-from-volume: volume-name, export-type (raw or qcow2). clone: backing-image. upload: none.
	// +optional
	// +kubebuilder:validation:MaxProperties=16
	SourceParameters map[string]SourceParameter `json:"sourceParameters,omitempty"`

	// Checksum of the file as the source serves it: SHA-512 or SHA-256 in hexadecimal, told apart by length or by a
	// prefix sha512: or sha256:. Immutable.
	// +optional
	// +kubebuilder:validation:MaxLength=135
	// +kubebuilder:validation:Pattern=`^$|^([sS][hH][aA]256:)?[0-9a-fA-F]{64}$|^([sS][hH][aA]512:)?[0-9a-fA-F]{128}$`
	Checksum string `json:"checksum,omitempty"`

	// MinNumberOfCopies that Plinth keeps, on different nodes where it can.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	MinNumberOfCopies int32 `json:"minNumberOfCopies,omitempty"`

	// NodeSelector lists tags that a node must have to hold a copy.
	// +optional
	NodeSelector []string `json:"nodeSelector,omitempty"`

	// DiskSelector lists tags that a disk must have to hold a copy.
	// +optional
	DiskSelector []string `json:"diskSelector,omitempty"`

	// DiskFileSpecMap names, by disk UUID, disks that must hold a copy. Only users write it.
	// +optional
	DiskFileSpecMap map[string]DiskFileSpec `json:"diskFileSpecMap,omitempty"`

	// Prefetch asks for a copy on every disk that the selectors match.
	// +optional
	Prefetch bool `json:"prefetch,omitempty"`

	// AllowedNamespaces are the Kubernetes namespaces whose claims may ask for this image, as their dataSourceRef or by the annotation
	// plinth.dev/backing-image, where their StorageClass allows that; "*" is every namespace. Absent, none may. What a StorageClass itself
	// names needs no leave. It may change at any time, and what was provisioned stays.
	// +optional
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:Pattern=`^(\*|[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)$`
	// +listType=set
	AllowedNamespaces []string `json:"allowedNamespaces,omitempty"`

	// AccessTokens let who knows one upload this image's file, or download its content, at a node's agent. Who writes them
	// keeps the token; only its hash is here.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=sha256
	AccessTokens []AccessToken `json:"accessTokens,omitempty"`

	// DataEngine is accepted so that Longhorn's manifests carry over; v1 is the only value.
	// +optional
	// +kubebuilder:validation:Enum=v1
	DataEngine string `json:"dataEngine,omitempty"`
}

// AccessToken is a token's hash and the end of its life.
type AccessToken struct {
	// SHA256 of the token, in lower-case hexadecimal.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	SHA256 string `json:"sha256"`
	// ExpirationTime after which the token opens nothing.
	ExpirationTime metav1.Time `json:"expirationTime"`
}

// SourceParameter is one value of SourceParameters.
// +kubebuilder:validation:MaxLength=4096
type SourceParameter string

// DiskFileSpec is a user's wish for one disk.
type DiskFileSpec struct {
	// EvictionRequested moves the copy away from this disk.
	// +optional
	EvictionRequested bool `json:"evictionRequested,omitempty"`
}

// CopyState is the state of one copy, or of an image as a whole (its best copy's). Longhorn's words, and evicting.
type CopyState string

const (
	CopyPending    CopyState = "pending"     // wanted; the agent has not begun
	CopyStarting   CopyState = "starting"    // the source is being opened
	CopyInProgress CopyState = "in-progress" // bytes are arriving
	CopyReady      CopyState = "ready"       // verified and clonable
	CopyFailed     CopyState = "failed"      // see message; nextTryTime tells whether it will be tried again
	CopyUnknown    CopyState = "unknown"     // its node is silent
	CopyEvicting   CopyState = "evicting"    // about to go
)

// BackingImageStatus is what is true of an image.
type BackingImageStatus struct {
	// State is the state of the image: that of its best copy.
	// +optional
	State CopyState `json:"state,omitempty"`
	// Progress of the best copy, in percent.
	// +optional
	Progress int32 `json:"progress,omitempty"`
	// Copies that are ready and wanted, as "ready/wanted", for people.
	// +optional
	Copies string `json:"copies,omitempty"`
	// Message says in a sentence what is happening or what is wrong.
	// +optional
	Message string `json:"message,omitempty"`
	// Warning says what of the source was left out, for instance snapshots inside a qcow2 file; empty when nothing was.
	// +optional
	Warning string `json:"warning,omitempty"`
	// Format of the source file: raw, qcow2, vmdk, vdi, vhd or vhdx, and how it was compressed, as in qcow2+xz.
	// +optional
	Format string `json:"format,omitempty"`
	// ResolvedSource is the source with what its name stood for when it was fetched: an oci:// reference with its digest.
	// +optional
	ResolvedSource string `json:"resolvedSource,omitempty"`
	// Size of the source file in bytes.
	// +optional
	Size int64 `json:"size,omitempty"`
	// VirtualSize is the size of the disk inside the image, in bytes: the least a volume of it can have.
	// +optional
	VirtualSize int64 `json:"virtualSize,omitempty"`
	// RealSize is what a copy occupies on a disk, in bytes.
	// +optional
	RealSize int64 `json:"realSize,omitempty"`
	// Checksum is the SHA-512 of the source file, in hexadecimal; empty for an export, which has none, and for an upload for which
	// no checksum was given. What identifies an image is contentDigest.
	// +optional
	Checksum string `json:"checksum,omitempty"`
	// ContentDigest is the BLAKE3 root over the raw content; the same for every copy, fixed by the first.
	// +optional
	ContentDigest string `json:"contentDigest,omitempty"`
	// DiskFileStatusMap is each copy's state, by disk UUID.
	// +optional
	DiskFileStatusMap map[string]DiskFileStatus `json:"diskFileStatusMap,omitempty"`
	// Volumes that were made from this image and exist.
	// +optional
	Volumes []string `json:"volumes,omitempty"`
	// Conditions: Ready (a copy can be cloned), Healthy (at least the wanted copies are ready).
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// DiskFileStatus is one copy's state as the image reports it.
type DiskFileStatus struct {
	// +optional
	State CopyState `json:"state,omitempty"`
	// Progress in percent.
	// +optional
	Progress int32 `json:"progress,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	LastStateTransitionTime metav1.Time `json:"lastStateTransitionTime,omitempty"`
}

// BackingImage is a golden disk or data set: fetched once, kept as verified copies, cloned into volumes.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=bi;bimg,categories=plinth
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Progress",type=integer,format=int32,JSONPath=`.status.progress`
// +kubebuilder:printcolumn:name="Copies",type=string,JSONPath=`.status.copies`
// +kubebuilder:printcolumn:name="Virtual",type=integer,format=int64,JSONPath=`.status.virtualSize`
// +kubebuilder:printcolumn:name="Source",type=string,JSONPath=`.spec.sourceType`,priority=1
// +kubebuilder:printcolumn:name="Real",type=integer,format=int64,JSONPath=`.status.realSize`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BackingImage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BackingImageSpec   `json:"spec"`
	Status BackingImageStatus `json:"status,omitempty"`
}

// BackingImageList is a list of BackingImages.
// +kubebuilder:object:root=true
type BackingImageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BackingImage `json:"items"`
}
