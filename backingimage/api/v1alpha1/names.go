package v1alpha1

import (
	"slices"
	"strings"
)

// ImageFinalizer keeps a BackingImage while volumes still wait for it, and until its copies' objects are gone.
const ImageFinalizer = "plinth.dev/backing-image"

// ImageAnnotation is the annotation by which a claim asks for an image other than its StorageClass's.
const ImageAnnotation = "plinth.dev/backing-image"

// FirstDiskAnnotation is the annotation of an image that names the disk for its first copy, if copies may be there: the disk of the volume
// that it was made for. Later it means nothing.
const FirstDiskAnnotation = "plinth.dev/first-disk"

// StandInAnnotation is at a claim in Plinth's own namespace that stands in for another while that one's volume is made: the other's
// "namespace/name/uid". In any other namespace it means nothing.
const StandInAnnotation = "plinth.dev/stands-in-for"

// AnyNamespace in BackingImageSpec.AllowedNamespaces is every one.
const AnyNamespace = "*"

// TopologyKey is the topology segment whose value is the StorageNode's name.
const TopologyKey = "topology.plinth.dev/node"

// CopyName is the name of the BackingImageCopy of an image on a disk: both identities, whole.
func CopyName(imageUID, diskUUID string) string { return imageUID + "." + diskUUID }

// ParseCopyName is the inverse of CopyName.
func ParseCopyName(name string) (imageUID, diskUUID string, ok bool) {
	imageUID, diskUUID, ok = strings.Cut(name, ".")
	return imageUID, diskUUID, ok && imageUID != "" && diskUUID != "" && !strings.Contains(diskUUID, ".")
}

// ClonePoint is the name of the Snapshot of which a volume on another disk than its source volume's is made. No snapshot that somebody
// asks for has such a name.
func ClonePoint(volume string) string { return volume + ".clone" }

// Parameters returns the source parameters as plain strings.
func (s *BackingImageSpec) Parameters() map[string]string {
	m := make(map[string]string, len(s.SourceParameters))
	for k, v := range s.SourceParameters {
		m[k] = string(v)
	}
	return m
}

// Allows reports whether claims of a namespace may ask for the image.
func (s *BackingImageSpec) Allows(namespace string) bool {
	return slices.Contains(s.AllowedNamespaces, namespace) || slices.Contains(s.AllowedNamespaces, AnyNamespace)
}

// VolumeNamed finds a volume by its ID or, where no volume has that ID, by the name that the orchestrator gave it; nil when
// there is none.
func VolumeNamed(volumes []*Volume, name string) *Volume {
	var found *Volume
	for _, v := range volumes {
		if v.Name == name {
			return v
		}
		if v.Spec.Name == name {
			found = v
		}
	}
	return found
}

// Clones reports whether the image is to be a clone of the named one.
func (s *BackingImageSpec) Clones(image string) bool {
	return s.SourceType == SourceClone && string(s.SourceParameters[ParameterBackingImage]) == image
}

// Exports reports whether the image is to be an export of the volume.
func (s *BackingImageSpec) Exports(v *Volume) bool {
	name := string(s.SourceParameters[ParameterVolumeName])
	return s.SourceType == SourceExport && (name == v.Name || name == v.Spec.Name)
}

// Waits reports whether a volume still needs its image: it is to be cloned from one and is not yet.
func (v *Volume) Waits() bool {
	return v.Spec.Image != nil && !v.Spec.ReadOnlyMany && v.Spec.SourceVolume == "" && v.Spec.SourceSnapshot == "" && v.Status.State != VolumeReady && v.DeletionTimestamp == nil
}

// BeingMade reports whether a volume is not made yet and still can be, so that it needs what it is made from.
func (v *Volume) BeingMade() bool {
	return v.DeletionTimestamp == nil && v.Status.State != VolumeReady && v.Status.State != VolumeFailed
}

// Final reports whether a copy has failed and trying again, with nothing changed, cannot help.
func (c *BackingImageCopy) Final() bool {
	return c.Status.State == CopyFailed && c.Status.NextTryTime == nil
}

// VerifiedGood is the status.verifyResult of a copy that is as it must be.
const VerifiedGood = "every chunk agrees with the manifest"

// VerifyPending reports whether a verification was asked for that has not been answered.
func (c *BackingImageCopy) VerifyPending() bool {
	asked, answered := c.Spec.VerifyRequestedTime, c.Status.VerifiedRequestTime
	return asked != nil && (answered == nil || answered.Time.Before(asked.Time))
}

// Schedulable reports whether new copies and volumes are allowed on the node.
func (n *StorageNode) Schedulable() bool {
	return n.DeletionTimestamp == nil && !n.Spec.EvictionRequested && !n.Status.Cordoned && (n.Spec.AllowScheduling == nil || *n.Spec.AllowScheduling)
}

// Schedulable reports whether users allow new copies and volumes on the disk.
func (d *Disk) Schedulable() bool {
	return d.DeletionTimestamp == nil && !d.Spec.EvictionRequested && (d.Spec.AllowScheduling == nil || *d.Spec.AllowScheduling)
}
