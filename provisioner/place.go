package provisioner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/placement"
	"plinth.dev/plinth/backingimage/store"
)

// place chooses the disk: allowed by topology and selectors, with room, near the front of the wanted nodes, and
// best one that already holds a ready copy of the image, or gets one. Where nobody has chosen a node, the copy counts first.
func (p *Provisioner) place(_ context.Context, d *draft) error {
	if d.request.ReadOnlyMany {
		return nil // it is wherever it is read
	}
	var refusals []string
	var best *candidate
	for _, disk := range p.store.Disks.List() {
		c := p.candidate(disk)
		why := p.refuses(c, d)
		if why != "" {
			refusals = append(refusals, fmt.Sprintf("disk %s on node %s: %s", disk.Name, disk.Spec.NodeName, why))
			continue
		}
		c.judge(d, p.copyState(d.image, disk.Name))
		if best == nil || c.compare(best) < 0 {
			best = c
		}
	}
	if best == nil {
		return noDisk(d.bytes, refusals)
	}
	d.disk = best.disk
	return nil
}

// firstDisk is the annotation of an image that is made for a draft: its first copy shall be where the volume will be, lest a second one is
// made there. Where no disk can take the volume, there is none; why, it is told when it is placed.
func (p *Provisioner) firstDisk(ctx context.Context, d *draft) map[string]string {
	try := *d
	try.bytes = roundUp(d.request.RequiredBytes)
	if err := p.place(ctx, &try); err != nil || try.disk == nil {
		return nil
	}
	return map[string]string{v1alpha1.FirstDiskAnnotation: try.disk.Name}
}

func noDisk(bytes int64, refusals []string) error {
	if len(refusals) == 0 {
		return backingimage.Errorf(backingimage.Full, "no disk can take a volume of %s: no disk is registered; is an agent running?", backingimage.SizeText(bytes))
	}
	if len(refusals) > 5 {
		refusals = append(refusals[:5], fmt.Sprintf("and %d more", len(refusals)-5))
	}
	return backingimage.Errorf(backingimage.Full, "no disk can take a volume of %s: %s; make room, mend what else is named, or add a disk", backingimage.SizeText(bytes), strings.Join(refusals, "; "))
}

// candidate is a disk and the figures that decide.
type candidate struct {
	disk     *v1alpha1.Disk
	promised int64 // bytes of the volumes and images on it
	rank     []int // what is compared first to last, the less the better
}

func (p *Provisioner) candidate(disk *v1alpha1.Disk) *candidate {
	c := &candidate{disk: disk}
	for _, v := range p.store.Volumes.By(store.ByDisk, disk.Name) {
		c.promised = placement.Sum(c.promised, v.Spec.CapacityBytes)
	}
	for _, s := range p.store.Snapshots.By(store.ByDisk, disk.Name) {
		c.promised = placement.Sum(c.promised, placement.SnapshotBytes(s))
	}
	for _, b := range p.store.Copies.By(store.ByDisk, disk.Name) {
		c.promised = placement.Sum(c.promised, placement.CopyBytes(b))
	}
	return c
}

// refuses says why a disk cannot take the draft, "" when it can.
func (p *Provisioner) refuses(c *candidate, d *draft) string {
	disk := c.disk
	node, known := p.store.Nodes.Get(disk.Spec.NodeName)
	ready := meta.FindStatusCondition(disk.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil || ready.Status != "True":
		return "is not ready" + because(ready)
	case !disk.Schedulable():
		return "new volumes are not allowed on it (allowScheduling, evictionRequested)"
	case disk.Spec.NodeName != "" && !known:
		return "its node is not registered"
	case known && !meta.IsStatusConditionTrue(node.Status.Conditions, v1alpha1.ConditionReady):
		return "its node is not ready"
	case known && !node.Schedulable():
		return "new volumes are not allowed on its node (allowScheduling, evictionRequested, or cordoned)"
	case len(d.request.Nodes) > 0 && disk.Spec.NodeName != "" && !slices.Contains(d.request.Nodes, disk.Spec.NodeName):
		return "its node is not among those asked for: " + strings.Join(d.request.Nodes, ", ")
	case !placement.HasTags(disk.Spec.Tags, d.parameters.DiskSelector):
		return fmt.Sprintf("lacks a tag of diskSelector %q", d.parameters.DiskSelector)
	case known && !placement.HasTags(node.Spec.Tags, d.parameters.NodeSelector):
		return fmt.Sprintf("its node lacks a tag of nodeSelector %q", d.parameters.NodeSelector)
	}
	return c.lacks(d.bytes, p.imageBytes(d, disk), p.options)
}

// imageBytes is what a copy of the draft's image will take of a disk that has none.
func (p *Provisioner) imageBytes(d *draft, disk *v1alpha1.Disk) int64 {
	if d.image == nil || p.copyState(d.image, disk.Name) != "" {
		return 0
	}
	return placement.ImageBytes(d.image)
}

// lacks says what room is missing for a volume and, where it has to come first, its image; "" when there is enough.
func (c *candidate) lacks(volumeBytes, imageBytes int64, o Options) string {
	return o.limits().Lacks(c.disk, c.promised, volumeBytes, imageBytes)
}

func (p *Provisioner) copyState(image *v1alpha1.BackingImage, disk string) v1alpha1.CopyState {
	if image == nil {
		return ""
	}
	c, ok := p.store.Copies.Get(v1alpha1.CopyName(string(image.UID), disk))
	if !ok {
		return ""
	}
	return cmp.Or(c.Status.State, v1alpha1.CopyPending)
}

// judge gives a candidate its rank: first whether what the volume is made from would have to come here from another disk, then the place of its
// node in the order of wanted ones, then whether a copy of the image is there or coming. The last two change places where that order is
// nobody's choice: a second copy for it would be made for nothing.
func (c *candidate) judge(d *draft, copy v1alpha1.CopyState) {
	away := 0
	if d.source != nil && d.source.disk != c.disk.Name {
		away = 1
	}
	node := max(slices.Index(d.request.Nodes, c.disk.Spec.NodeName), 0)
	missing := 1
	switch copy {
	case v1alpha1.CopyReady:
		missing = 0
	case "":
		missing = 2
	}
	c.rank = []int{away, node, missing}
	if d.anyNode {
		c.rank = []int{away, missing, node}
	}
}

// compare orders candidates, the better first.
func (c *candidate) compare(o *candidate) int {
	return cmp.Or(slices.Compare(c.rank, o.rank),
		cmp.Compare(c.promised-c.disk.Status.CapacityBytes, o.promised-o.disk.Status.CapacityBytes), cmp.Compare(c.disk.Name, o.disk.Name))
}

func (p *Provisioner) roomToGrow(v *v1alpha1.Volume, bytes int64) error {
	disk, ok := p.store.Disks.Get(v.Spec.DiskUUID)
	if !ok || bytes <= v.Spec.CapacityBytes {
		return nil
	}
	if why := p.candidate(disk).lacks(bytes-v.Spec.CapacityBytes, 0, p.options); why != "" {
		return backingimage.Errorf(backingimage.Full, "volume %s cannot grow to %s: disk %s: %s", v.Name, backingimage.ExactSizeText(bytes), disk.Name, why)
	}
	return nil
}

// Capacity implements Controller. Where the image that the parameters name has no copy yet, room is left for one. Parameters that Create refuses
// have room wherever there is any: a scheduler that knows of no room asks for no volume, and nobody would hear why it is refused.
func (p *Provisioner) Capacity(_ context.Context, raw map[string]string, node string) (available, largest int64, err error) {
	parameters, err := ParseParameters(DriverParameters(raw))
	if err != nil {
		parameters = Parameters{}
	}
	d := &draft{parameters: parameters}
	if image, known := p.store.Images.Get(parameters.Image); known {
		d.image = image
	}
	if node != "" {
		d.request.Nodes = []string{node}
	}
	for _, disk := range p.store.Disks.List() {
		c := p.candidate(disk)
		if p.refuses(c, d) != "" {
			continue
		}
		room := p.options.limits().Promisable(disk) - c.promised - p.imageBytes(d, disk)
		available += room
		largest = max(largest, room)
	}
	return available, largest, nil
}

func because(c *metav1.Condition) string {
	if c == nil || c.Message == "" {
		return ""
	}
	return ": " + c.Message
}
