package doctor

import (
	"cmp"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func (x *examination) images() {
	for _, i := range x.Images {
		x.image(i)
	}
}

func (x *examination) image(i *v1alpha1.BackingImage) {
	const kind = "BackingImage"
	ready, healthy := meta.FindStatusCondition(i.Status.Conditions, v1alpha1.ConditionReady), meta.FindStatusCondition(i.Status.Conditions, v1alpha1.ConditionHealthy)
	anew := fmt.Sprintf("mend what the message names, then delete the image and create it anew (plinth image rm %s)", i.Name)
	switch {
	case i.DeletionTimestamp != nil && x.longAgo(*i.DeletionTimestamp):
		x.find(Warning, kind, i.Name, "Deleting", cmp.Or(i.Status.Message, "is being deleted for long"), "delete the volumes that wait for it, or let them be made")
	case i.DeletionTimestamp != nil:
	case ready != nil && ready.Reason == v1alpha1.ImageLost:
		x.find(Error, kind, i.Name, "Lost", ready.Message, "do what the message says; volumes that exist are not affected")
	case i.Status.State == v1alpha1.CopyFailed && x.triedAgain(i):
		x.find(Warning, kind, i.Name, "FetchFails", i.Status.Message, "mend the source if the message blames it; it is tried again by itself (plinth image show "+i.Name+")")
	case i.Status.State == v1alpha1.CopyFailed:
		x.find(Error, kind, i.Name, "Failed", i.Status.Message, anew)
	case i.Status.State == v1alpha1.CopyUnknown:
		x.find(Error, kind, i.Name, "Unreachable", i.Status.Message, "start the agents of the nodes that hold its copies, or mend their disks")
	case healthy != nil && healthy.Status == metav1.ConditionFalse && x.longAgo(healthy.LastTransitionTime) && i.Status.State == v1alpha1.CopyReady:
		x.find(Warning, kind, i.Name, "TooFewCopies", healthy.Message, "add disks or room, loosen the image's selectors, or lower spec.minNumberOfCopies")
	case i.Status.State == "" && x.longAgo(i.CreationTimestamp):
		x.find(Error, kind, i.Name, "Ignored", "nothing has looked at it since it was created", "start plinth controller (or plinth standalone)")
	}
	if fetched := i.Status.Checksum; i.Spec.SourceType == v1alpha1.SourceDownload && i.Spec.Checksum == "" && fetched != "" && i.DeletionTimestamp == nil {
		x.find(Note, kind, i.Name, "NoChecksum", "no checksum was given: whatever its source served first was taken for right",
			"create it anew with the sum that its publisher gives; what was fetched has sha512:"+fetched)
	}
}

// triedAgain reports whether some copy of an image is going to be tried again.
func (x *examination) triedAgain(i *v1alpha1.BackingImage) bool {
	for _, c := range x.Copies {
		if c.Spec.ImageUID == string(i.UID) && c.Status.State == v1alpha1.CopyFailed && c.Status.NextTryTime != nil {
			return true
		}
	}
	return false
}

// copies are looked at for what their images, disks and nodes do not say already.
func (x *examination) copies() {
	for _, c := range x.Copies {
		what := fmt.Sprintf("the copy of image %s on node %s", c.Spec.Image, c.Spec.NodeName)
		switch {
		case len(c.Status.BadChunks) > 0:
			x.find(Error, "BackingImageCopy", c.Name, "Damaged", fmt.Sprintf("%s is damaged: %s", what, c.Status.Message), "it is repaired by itself where another copy or the source has the bytes; look at the disk's health, and replace a disk that damages more")
		case c.Final() && !c.Spec.Origin:
			x.find(Warning, "BackingImageCopy", c.Name, "Failed", fmt.Sprintf("%s failed: %s", what, c.Status.Message), "mend the cause, then delete this copy so that it is made anew")
		case c.Status.State == v1alpha1.CopyInProgress && c.Status.BytesPerSecond == 0 && x.longAgo(c.Status.LastStateTransitionTime):
			x.find(Warning, "BackingImageCopy", c.Name, "Stalled", fmt.Sprintf("%s gets no bytes: %s", what, cmp.Or(c.Status.Message, "it does not say why")), "look at the agent's log on that node, and at the source")
		}
	}
}
