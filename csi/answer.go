package csi

import (
	"cmp"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// contextImage is the one key of a volume's context: the image's name, for people.
const contextImage = "backingImage"

// volumeAnswer is a Volume in the specification's words.
func volumeAnswer(v *v1alpha1.Volume) *csi.Volume {
	answer := &csi.Volume{
		VolumeId:      v.Name,
		CapacityBytes: v.Spec.CapacityBytes,
		VolumeContext: contextOf(v),
	}
	switch {
	case v.Spec.SourceHandle != "":
		answer.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.Spec.SourceHandle},
		}}
	case v.Spec.SourceVolume != "":
		answer.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.Spec.SourceVolume},
		}}
	}
	if t := topologyOf(v.Spec.NodeName); t != nil {
		answer.AccessibleTopology = []*csi.Topology{t}
	}
	return answer
}

func contextOf(v *v1alpha1.Volume) map[string]string {
	if v.Spec.Image == nil {
		return nil
	}
	return map[string]string{contextImage: v.Spec.Image.Name}
}

// conditionOf is abnormal for a volume that failed, or that was ready and has an error since. One that still waits,
// for its image for instance, is not ill; the message says what it waits for.
func conditionOf(v *v1alpha1.Volume) *csi.VolumeCondition {
	s := v.Status
	state := cmp.Or(s.State, v1alpha1.VolumePending)
	return &csi.VolumeCondition{
		Abnormal: state == v1alpha1.VolumeFailed || state == v1alpha1.VolumeReady && s.Reason != "",
		Message:  cmp.Or(s.Message, "the volume is "+string(state)),
	}
}
