package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// BackupPolicySpec says which volumes are backed up when, and how long the backups are kept.
//
// +kubebuilder:validation:XValidation:rule="has(self.volumes) != has(self.volumeSelector)",message="give exactly one of spec.volumes and spec.volumeSelector"
type BackupPolicySpec struct {
	// Target is the name of the BackupTarget.
	// +kubebuilder:validation:MinLength=1
	Target string `json:"target"`
	// Schedule in cron's five fields (minute, hour, day, month, weekday), in UTC unless it begins with CRON_TZ=Zone, or @daily and the like.
	// +kubebuilder:validation:MinLength=1
	Schedule string `json:"schedule"`
	// Volumes are the names of Volume objects.
	// +optional
	// +kubebuilder:validation:MinItems=1
	Volumes []string `json:"volumes,omitempty"`
	// VolumeSelector chooses volumes by their labels; an empty one chooses all.
	// +optional
	VolumeSelector *metav1.LabelSelector `json:"volumeSelector,omitempty"`
	// Suspend makes no new backups while it is true.
	// +optional
	Suspend bool `json:"suspend,omitempty"`
	// KeepLast is how many of each volume's newest backups stay.
	// +optional
	// +kubebuilder:validation:Minimum=0
	KeepLast int32 `json:"keepLast,omitempty"`
	// KeepDaily is of how many days the last backup stays.
	// +optional
	// +kubebuilder:validation:Minimum=0
	KeepDaily int32 `json:"keepDaily,omitempty"`
	// KeepWeekly is of how many weeks, which begin on Monday, the last backup stays.
	// +optional
	// +kubebuilder:validation:Minimum=0
	KeepWeekly int32 `json:"keepWeekly,omitempty"`
}

// BackupPolicyStatus is what a policy did.
type BackupPolicyStatus struct {
	// LastTime for which backups were made.
	// +optional
	LastTime *metav1.Time `json:"lastTime,omitempty"`
	// NextTime for which they will be.
	// +optional
	NextTime *metav1.Time `json:"nextTime,omitempty"`
	// Conditions: Ready, when the policy can be followed.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}

// BackupPolicy makes backups of volumes by a schedule and removes those that it made and that are kept no longer. Where it keeps
// nothing (no keep… above 0) it removes nothing.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pbp,categories=plinth,path=backuppolicies
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.spec.target`
// +kubebuilder:printcolumn:name="Schedule",type=string,JSONPath=`.spec.schedule`
// +kubebuilder:printcolumn:name="Suspended",type=boolean,JSONPath=`.spec.suspend`
// +kubebuilder:printcolumn:name="Last",type=date,JSONPath=`.status.lastTime`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BackupPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   BackupPolicySpec   `json:"spec"`
	Status BackupPolicyStatus `json:"status,omitempty"`
}

// BackupPolicyList is a list of BackupPolicies.
// +kubebuilder:object:root=true
type BackupPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []BackupPolicy `json:"items"`
}
