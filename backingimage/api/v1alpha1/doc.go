// Package v1alpha1 defines the objects of plinth.dev/v1alpha1.
//
// A BackingImage is what a user wants; a BackingImageCopy is the controller's decision that one disk shall hold it, and
// the agent's report of what that disk holds. StorageNode and Disk are where copies and volumes can be; a Volume is
// pinned to a disk. All are cluster-scoped. What can be checked without looking at another object is checked by the CRD's
// schema and CEL rules, which controller-gen derives from the markers here.
//
// +kubebuilder:object:generate=true
// +groupName=plinth.dev
package v1alpha1
