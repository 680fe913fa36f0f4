package doctor

import (
	"cmp"
	"fmt"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func (x *examination) volumes() {
	for _, v := range x.Volumes {
		x.volume(v)
	}
}

func (x *examination) volume(v *v1alpha1.Volume) {
	const kind = "Volume"
	s, of := v.Status, ""
	if c := v.Spec.Claim; c != nil {
		of = fmt.Sprintf(" (claim %s/%s)", c.Namespace, c.Name)
	}
	switch {
	case v.DeletionTimestamp != nil && x.longAgo(*v.DeletionTimestamp):
		x.find(Warning, kind, v.Name, "Deleting", fmt.Sprintf("is being deleted for long%s: %s", of, cmp.Or(s.Message, "waits for the agent of node "+v.Spec.NodeName)), "let go of what uses it, or start that agent")
	case v.DeletionTimestamp != nil:
	case s.State == v1alpha1.VolumeFailed:
		x.find(Error, kind, v.Name, "Failed", s.Message+of, "do what the message says; the volume has no data that could be lost unless it was ready before")
	case s.State == v1alpha1.VolumeReady && s.Reason == v1alpha1.VolumeAbandoned:
		x.find(Error, kind, v.Name, "Abandoned", s.Message+of, "bring back machine "+v.Spec.NodeName+", or delete the volume")
	case s.State == v1alpha1.VolumeReady && s.Reason != "":
		x.find(Error, kind, v.Name, s.Reason, s.Message+of, "look at disk "+v.Spec.DiskUUID+": plinth disk show "+v.Spec.DiskUUID)
	case s.State != v1alpha1.VolumeReady && x.longAgo(v.CreationTimestamp):
		x.find(Warning, kind, v.Name, "Waits", fmt.Sprintf("is not ready%s: %s", of, cmp.Or(s.Message, "its agent on node "+v.Spec.NodeName+" has not begun")), waitRemedy(v))
	}
}

func waitRemedy(v *v1alpha1.Volume) string {
	if v.Spec.Image != nil {
		return "see what its image waits for: plinth image show " + v.Spec.Image.Name
	}
	return "see that the agent of node " + v.Spec.NodeName + " runs"
}
