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

// report finds how the image will tell of its copies, and which of them says most about it.
func (p *planner) report() {
	p.shown = make(map[string]v1alpha1.DiskFileStatus, len(p.copies))
	for _, c := range p.copies {
		if c.standing == sound {
			p.Ready++
		}
		if p.best == nil || rank(c) > rank(p.best) {
			p.best = c
		}
		p.shown[c.Spec.DiskUUID] = shown(c)
	}
}

// shown is a copy's state as the image reports it. That it cannot be reached or is to leave is the controller's to say: the
// agent's word, in the copy's own status, stays as it is, for peers and volumes go by it.
func shown(c *placed) v1alpha1.DiskFileStatus {
	s := v1alpha1.DiskFileStatus{
		State: stateOf(c.BackingImageCopy), Progress: c.Status.Progress, Message: c.Status.Message, LastStateTransitionTime: c.Status.LastStateTransitionTime,
	}
	switch {
	case c.away != "":
		s.State, s.Message = v1alpha1.CopyUnknown, c.away
	case c.foreign:
		s.State, s.Message = v1alpha1.CopyFailed, otherContent
	case c.leaving != "":
		s.Message = c.leaving
		if c.evicting != "" || c.cordoned != "" {
			s.State = v1alpha1.CopyEvicting
		} else if c.Status.Message != "" {
			s.Message = c.Status.Message + "; " + c.leaving
		}
	}
	return s
}

func stateOf(c *v1alpha1.BackingImageCopy) v1alpha1.CopyState {
	return cmp.Or(c.Status.State, v1alpha1.CopyPending)
}

// rank orders copies by how much they say about the image: a ready one most, then the origin.
func rank(c *placed) int {
	switch {
	case c.standing == sound:
		return 6
	case c.standing == failed:
		return 5
	case c.Spec.Origin && (c.standing == coming || c.standing == stuck):
		return 4
	case c.standing == coming:
		return 3
	case c.standing == uncertain:
		return 2
	case c.standing == stuck:
		return 1
	}
	return 0
}

// summarize writes into status what copies and volumes say of an image.
func summarize(s State, d Decision, status *v1alpha1.BackingImageStatus) {
	status.ObservedGeneration = s.Image.Generation
	status.DiskFileStatusMap = d.shown
	status.Volumes = nil
	for _, v := range s.Volumes {
		if v.Spec.Image != nil && v.Spec.Image.UID == string(s.Image.UID) && len(status.Volumes) < maxVolumesListed {
			status.Volumes = append(status.Volumes, v.Name)
		}
	}
	status.Copies = fmt.Sprintf("%d/%d", d.Ready, d.Wanted)
	adopt(status, d)
	status.Message = message(d)
	conditions(s, d, status)
}

// adopt takes over what the best copy knows of the content. The content digest is fixed by the first good copy.
func adopt(status *v1alpha1.BackingImageStatus, d Decision) {
	if status.State, status.Progress = imageState(d); d.best == nil {
		return
	}
	c := d.best.Status
	if c.VirtualSize > 0 {
		status.Size, status.VirtualSize, status.Format = c.Size, c.VirtualSize, c.Format
	}
	if d.best.standing != sound {
		return
	}
	status.RealSize, status.Checksum, status.Warning = c.RealSize, c.Checksum, c.Warning
	status.ResolvedSource = c.ResolvedSource
	if status.ContentDigest == "" {
		status.ContentDigest = c.ContentDigest
	}
}

// imageState is the state of the image, and its progress in percent.
func imageState(d Decision) (v1alpha1.CopyState, int32) {
	switch {
	case d.Lost != "":
		return v1alpha1.CopyFailed, 0
	case d.best == nil:
		return v1alpha1.CopyPending, 0
	case d.best.standing == sound:
		return v1alpha1.CopyReady, 100
	case d.best.standing == failed:
		return v1alpha1.CopyFailed, d.best.Status.Progress
	}
	return shown(d.best).State, d.best.Status.Progress
}

func message(d Decision) string {
	switch {
	case len(d.Held) > 0:
		return fmt.Sprintf("is being deleted; waits for %s, which still needs it", listed(d.Held))
	case d.Lost != "":
		return d.Lost
	case d.best == nil || d.Ready > 0:
		return d.Short
	case d.best.standing != failed && d.best.away != "":
		return "no copy can be reached: " + d.best.away
	case d.best.standing == failed, d.best.Status.Message != "":
		return d.best.Status.Message
	}
	return d.Short
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

func conditions(s State, d Decision, status *v1alpha1.BackingImageStatus) {
	set := func(kind string, ok bool, reason, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: s.Image.Generation}
		if ok {
			c.Status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&status.Conditions, c)
	}
	switch {
	case d.Ready > 0:
		set(v1alpha1.ConditionReady, true, "CopyReady", "a copy can be cloned")
	case d.Lost != "":
		set(v1alpha1.ConditionReady, false, v1alpha1.ImageLost, d.Lost)
	case d.best == nil:
		set(v1alpha1.ConditionReady, false, "NoCopy", cmp.Or(d.Short, "no copy has been made yet"))
	case d.best.standing == failed:
		set(v1alpha1.ConditionReady, false, cmp.Or(d.best.Status.Reason, backingimage.Internal.String()), d.best.Status.Message)
	case d.best.away == "" && d.best.damaged():
		set(v1alpha1.ConditionReady, false, backingimage.Corrupt.String(), d.best.Status.Message)
	case status.State == v1alpha1.CopyUnknown:
		set(v1alpha1.ConditionReady, false, "Unreachable", message(d))
	default:
		set(v1alpha1.ConditionReady, false, "Fetching", "the first copy is being made")
	}
	if d.Ready >= d.Wanted {
		set(v1alpha1.ConditionHealthy, true, "EnoughCopies", fmt.Sprintf("%d of %d copies are ready", d.Ready, d.Wanted))
	} else {
		set(v1alpha1.ConditionHealthy, false, "TooFewCopies", cmp.Or(d.Short, fmt.Sprintf("%d of %d copies are ready", d.Ready, d.Wanted)))
	}
}
