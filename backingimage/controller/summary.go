package controller

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// maxVolumesListed bounds status.volumes, which is for people.
const maxVolumesListed = 100

// summarize writes into status what copies and volumes say of an image.
func summarize(s State, d Decision, status *v1alpha1.BackingImageStatus) {
	status.ObservedGeneration = s.Image.Generation
	status.DiskFileStatusMap = map[string]v1alpha1.DiskFileStatus{}
	status.Volumes = nil
	for _, v := range s.Volumes {
		if v.Spec.Image != nil && v.Spec.Image.UID == string(s.Image.UID) && len(status.Volumes) < maxVolumesListed {
			status.Volumes = append(status.Volumes, v.Name)
		}
	}
	ready := 0
	var best *v1alpha1.BackingImageCopy
	for _, c := range s.Copies {
		if c.Spec.ImageUID != string(s.Image.UID) {
			continue
		}
		status.DiskFileStatusMap[c.Spec.DiskUUID] = v1alpha1.DiskFileStatus{
			State: stateOf(c), Progress: c.Status.Progress, Message: c.Status.Message, LastStateTransitionTime: c.Status.LastStateTransitionTime,
		}
		if c.Status.State == v1alpha1.CopyReady {
			ready++
		}
		if best == nil || better(c, best) {
			best = c
		}
	}
	status.Copies = fmt.Sprintf("%d/%d", ready, d.Wanted)
	adopt(status, best)
	status.Message = message(s, d, best, ready)
	conditions(s, d, status, best, ready)
}

func stateOf(c *v1alpha1.BackingImageCopy) v1alpha1.CopyState {
	if c.Status.State == "" {
		return v1alpha1.CopyPending
	}
	return c.Status.State
}

// better orders copies by how much they say about the image: a ready one first, then the origin.
func better(a, b *v1alpha1.BackingImageCopy) bool {
	rank := func(c *v1alpha1.BackingImageCopy) int {
		switch {
		case c.Status.State == v1alpha1.CopyReady:
			return 2
		case c.Spec.Origin:
			return 1
		}
		return 0
	}
	return rank(a) > rank(b)
}

// adopt takes over what the best copy knows of the content. The content digest is fixed by the first good copy.
func adopt(status *v1alpha1.BackingImageStatus, best *v1alpha1.BackingImageCopy) {
	if best == nil {
		status.State, status.Progress = v1alpha1.CopyPending, 0
		return
	}
	status.State, status.Progress = stateOf(best), best.Status.Progress
	c := best.Status
	if c.VirtualSize > 0 {
		status.Size, status.VirtualSize, status.Format = c.Size, c.VirtualSize, c.Format
	}
	if c.State != v1alpha1.CopyReady {
		return
	}
	status.RealSize, status.Checksum, status.Warning = c.RealSize, c.Checksum, c.Warning
	status.ResolvedSource = c.ResolvedSource
	if status.ContentDigest == "" {
		status.ContentDigest = c.ContentDigest
	}
}

func message(s State, d Decision, best *v1alpha1.BackingImageCopy, ready int) string {
	switch {
	case len(d.Held) > 0:
		return fmt.Sprintf("is being deleted; waits for %s, which still needs it", listed(d.Held))
	case best != nil && ready == 0 && best.Status.Message != "":
		return best.Status.Message
	case d.Short != "":
		return d.Short
	}
	return ""
}

// listed names the first few of many.
func listed(names []string) string {
	if len(names) == 1 {
		return "volume " + names[0]
	}
	if len(names) > 3 {
		return fmt.Sprintf("volumes %s, %s, %s and %d more", names[0], names[1], names[2], len(names)-3)
	}
	return fmt.Sprintf("volumes %q", slices.Clone(names))
}

func conditions(s State, d Decision, status *v1alpha1.BackingImageStatus, best *v1alpha1.BackingImageCopy, ready int) {
	set := func(kind string, ok bool, reason, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: s.Image.Generation}
		if ok {
			c.Status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&status.Conditions, c)
	}
	switch {
	case ready > 0:
		set(v1alpha1.ConditionReady, true, "CopyReady", "a copy can be cloned")
	case best == nil:
		set(v1alpha1.ConditionReady, false, "NoCopy", cmp.Or(d.Short, "no copy has been made yet"))
	case best.Final():
		set(v1alpha1.ConditionReady, false, failureReason(best), best.Status.Message)
	default:
		set(v1alpha1.ConditionReady, false, "Fetching", "the first copy is being made")
	}
	switch {
	case ready >= d.Wanted:
		set(v1alpha1.ConditionHealthy, true, "EnoughCopies", fmt.Sprintf("%d of %d copies are ready", ready, d.Wanted))
	default:
		set(v1alpha1.ConditionHealthy, false, "TooFewCopies", cmp.Or(d.Short, fmt.Sprintf("%d of %d copies are ready", ready, d.Wanted)))
	}
}

func failureReason(c *v1alpha1.BackingImageCopy) string {
	if c.Status.Reason == "" {
		return backingimage.Internal.String()
	}
	return c.Status.Reason
}
