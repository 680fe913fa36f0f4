// Package placement is the arithmetic of room on disks, which copies of images, volumes and snapshots share: how much of a disk may be
// promised, and how much must stay free. Images' controller and the provisioner decide by it.
package placement

import (
	"fmt"
	"math"
	"slices"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Limits of what may be put on a disk, in percent of its capacity.
type Limits struct {
	OverProvisioningPercent int64 // may be promised to volumes, snapshots and images
	MinimalAvailablePercent int64 // must be free for the disk to get anything new
}

// Promisable is how many bytes of a disk may be promised.
func (l Limits) Promisable(d *v1alpha1.Disk) int64 {
	return share(d.Status.CapacityBytes, l.OverProvisioningPercent)
}

// Lacks says what room is missing on a disk, of which promised bytes are taken, for a volume and an image that has to come
// first; "" when there is enough. A volume takes of what may be promised, an image of what is free as well.
func (l Limits) Lacks(d *v1alpha1.Disk, promised, volumeBytes, imageBytes int64) string {
	capacity, promisable := d.Status.CapacityBytes, l.Promisable(d)
	if Sum(promised, volumeBytes, imageBytes) > promisable {
		return fmt.Sprintf("%s of %s that may be promised (%d %% of %s) are taken",
			backingimage.SizeText(promised), backingimage.SizeText(promisable), l.OverProvisioningPercent, backingimage.SizeText(capacity))
	}
	if reserve := share(capacity, l.MinimalAvailablePercent); d.Status.AvailableBytes-imageBytes < reserve {
		return fmt.Sprintf("%s are free, %s must stay free (%d %%)%s",
			backingimage.SizeText(d.Status.AvailableBytes), backingimage.SizeText(reserve), l.MinimalAvailablePercent, andImage(imageBytes))
	}
	return ""
}

func andImage(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return fmt.Sprintf(" after the image's %s", backingimage.SizeText(bytes))
}

// Sum is the sum of sizes, of which none is below 0, or the largest number there is where that is more: nobody gets room for asking for more than can be counted.
func Sum(sizes ...int64) (sum int64) {
	for _, bytes := range sizes {
		if bytes > math.MaxInt64-sum {
			return math.MaxInt64
		}
		sum += bytes
	}
	return sum
}

// share is percent of bytes, without overflow.
func share(bytes, percent int64) int64 {
	if s := float64(bytes) / 100 * float64(percent); s < math.MaxInt64 {
		return int64(s)
	}
	return math.MaxInt64
}

// ImageBytes is what a copy of an image takes, as far as that is known yet.
func ImageBytes(i *v1alpha1.BackingImage) int64 { return max(i.Status.RealSize, i.Status.Size) }

// CopyBytes is what a copy takes, as far as that is known yet.
func CopyBytes(c *v1alpha1.BackingImageCopy) int64 { return max(c.Status.RealSize, c.Status.Size) }

// SnapshotBytes is what a snapshot takes at the most: all of its data, once whatever it shares that with has been written over or is gone. It
// never grows, unlike a volume, which takes its whole size.
func SnapshotBytes(s *v1alpha1.Snapshot) int64 { return s.Status.RealBytes }

// HasTags reports whether tags contain every tag of a selector.
func HasTags(tags, selector []string) bool {
	for _, t := range selector {
		if !slices.Contains(tags, t) {
			return false
		}
	}
	return true
}
