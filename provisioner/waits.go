package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// waitsFor says what a volume waits for: "backing image fedora-42: fetching on node-2, 43 % of 2.1 GiB, 210 MiB/s, 6 s left".
func waitsFor(ctx context.Context, s *store.Store, v *v1alpha1.Volume) string {
	if !v.Waits() {
		return cmp.Or(v.Status.Message, "its agent has not made it yet")
	}
	c, ok := s.Copies.Get(v1alpha1.CopyName(v.Spec.Image.UID, v.Spec.DiskUUID))
	if !ok {
		return cmp.Or(v.Status.Message, "backing image "+v.Spec.Image.Name+" is not placed yet")
	}
	if v.Spec.Restore != nil && c.Status.State == v1alpha1.CopyReady {
		return cmp.Or(v.Status.Message, "its agent has not begun to restore it yet")
	}
	return awaited(ctx, s, c)
}

// tellTimeout bounds how long an answer that is due is kept back to say more: less than csi leaves of a kubelet's time.
const tellTimeout = time.Second

// toTell is a context for what is still asked when a wait is over. When it was called off, nobody listens.
func toTell(ctx context.Context) (context.Context, context.CancelFunc) {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		ctx = context.WithoutCancel(ctx)
	}
	return context.WithTimeout(ctx, tellTimeout)
}

// awaited says how far a copy is that is waited for: one that has not begun waits for the first, whose progress is what there is to tell.
func awaited(ctx context.Context, s *store.Store, c *v1alpha1.BackingImageCopy) string {
	if c.Status.State != v1alpha1.CopyPending || c.Spec.Origin {
		return Progress(c)
	}
	if other := first(ctx, s, c); other != nil {
		return Progress(other)
	}
	image, ok := s.Images.Get(c.Spec.Image)
	if !ok || string(image.UID) != c.Spec.ImageUID {
		return Progress(c)
	}
	return Progress(c) + imageSays(image, c)
}

// first is the copy of c's image that comes from the source, while it does; nil when there is none, or nobody says. An agent's cache has its
// own node's copies alone, but every image, which says on which disk it is: that one is asked for.
func first(ctx context.Context, s *store.Store, c *v1alpha1.BackingImageCopy) *v1alpha1.BackingImageCopy {
	for _, other := range s.Copies.By(store.ByImage, c.Spec.Image) {
		if isFirst(other) && other.Spec.ImageUID == c.Spec.ImageUID {
			return other
		}
	}
	image, ok := s.Images.Get(c.Spec.Image)
	if !ok || string(image.UID) != c.Spec.ImageUID || image.Status.ContentDigest != "" { // with that, there may be hundreds under way
		return nil
	}
	for disk, f := range image.Status.DiskFileStatusMap {
		if !begun(f.State) || disk == c.Spec.DiskUUID {
			continue
		}
		if other, err := s.Copies.Live(ctx, v1alpha1.CopyName(c.Spec.ImageUID, disk)); err == nil && isFirst(other) {
			return other
		}
	}
	return nil
}

func isFirst(c *v1alpha1.BackingImageCopy) bool { return c.Spec.Origin && begun(c.Status.State) }

func begun(s v1alpha1.CopyState) bool {
	return s == v1alpha1.CopyStarting || s == v1alpha1.CopyInProgress
}

// imageSays is what an image's status adds to what its copy c says; "" for nothing.
func imageSays(image *v1alpha1.BackingImage, c *v1alpha1.BackingImageCopy) string {
	s := image.Status
	if s.State == "" || s.State == v1alpha1.CopyReady || s.Message == c.Status.Message {
		return ""
	}
	says := fmt.Sprintf("; the image is %s", s.State)
	if s.Progress > 0 {
		says += fmt.Sprintf(", %d %%", s.Progress)
	}
	if s.Message != "" {
		says += ": " + s.Message
	}
	return says
}

// Progress says in a sentence how far a copy is.
func Progress(c *v1alpha1.BackingImageCopy) string {
	s := c.Status
	what := fmt.Sprintf("backing image %s: ", c.Spec.Image)
	switch s.State {
	case v1alpha1.CopyInProgress:
		what += fmt.Sprintf("fetching on %s", c.Spec.NodeName)
		if s.BytesTotal > 0 {
			what += fmt.Sprintf(", %d %% of %s", s.Progress, backingimage.SizeText(s.BytesTotal))
		} else if s.BytesDone > 0 {
			what += fmt.Sprintf(", %s so far", backingimage.SizeText(s.BytesDone))
		}
		if s.BytesPerSecond > 0 {
			what += fmt.Sprintf(", %s/s", backingimage.SizeText(s.BytesPerSecond))
		}
		if s.ETASeconds > 0 {
			what += fmt.Sprintf(", %d s left", s.ETASeconds)
		}
		if s.BytesPerSecond == 0 && s.Message != "" {
			what += " (" + s.Message + ")"
		}
		return what
	case v1alpha1.CopyReady:
		return what + "ready on " + c.Spec.NodeName
	case "":
		return what + "waits for the agent on " + c.Spec.NodeName
	}
	what += fmt.Sprintf("%s on %s", s.State, c.Spec.NodeName)
	if s.Message != "" {
		what += ": " + s.Message
	}
	return what
}
