package controller_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
)

func created(d controller.Decision) string {
	var disks []string
	for _, c := range d.Create {
		if c.Origin {
			c.DiskUUID += "*"
		}
		disks = append(disks, c.DiskUUID)
	}
	return strings.Join(disks, " ")
}

func state(i *v1alpha1.BackingImage, with ...func(*controller.State)) controller.State {
	s := controller.State{Image: i}
	for _, w := range with {
		w(&s)
	}
	return s
}

func image(name string, with ...func(*v1alpha1.BackingImage)) *v1alpha1.BackingImage {
	i := &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}
	for _, w := range with {
		w(i)
	}
	return i
}

func copies(n int) func(*v1alpha1.BackingImage) {
	return func(i *v1alpha1.BackingImage) { i.Spec.MinNumberOfCopies = int32(n) }
}

func firstDisk(disk string) func(*v1alpha1.BackingImage) {
	return func(i *v1alpha1.BackingImage) {
		i.Annotations = map[string]string{v1alpha1.FirstDiskAnnotation: disk}
	}
}

func deleting(i *v1alpha1.BackingImage) { i.DeletionTimestamp = &metav1.Time{} }

func name(image, disk string) string { return v1alpha1.CopyName("uid-"+image, disk) }

// disks adds disks written as name/node/free[/tag], where the tags cordoned and unready mean what they say, and their nodes.
func disks(specs ...string) func(*controller.State) {
	return func(s *controller.State) {
		for _, spec := range specs {
			f := strings.Split(spec+"/", "/")
			d := &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: f[0]}, Spec: v1alpha1.DiskSpec{NodeName: f[1], Tags: []string{f[3]}}}
			fmt.Sscan(f[2], &d.Status.AvailableBytes)
			allowed := f[3] != "cordoned"
			d.Spec.AllowScheduling = &allowed
			d.Status.Conditions = []metav1.Condition{readyIf(f[3] != "unready")}
			s.Disks = append(s.Disks, d)
			if !slices.ContainsFunc(s.Nodes, func(n *v1alpha1.StorageNode) bool { return n.Name == f[1] }) {
				n := &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: f[1]}}
				n.Status.Conditions = []metav1.Condition{readyIf(true)}
				s.Nodes = append(s.Nodes, n)
			}
		}
	}
}

func readyIf(ok bool) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse}
	if ok {
		c.Status = metav1.ConditionTrue
	}
	return c
}

func waiting(volume, image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		s.Volumes = append(s.Volumes, &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: volume}, Spec: v1alpha1.VolumeSpec{
			DiskUUID: disk, Image: &v1alpha1.VolumeImage{Name: image, UID: "uid-" + image}}})
	}
}

func cloned(volume, image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		waiting(volume, image, disk)(s)
		s.Volumes[len(s.Volumes)-1].Status.State = v1alpha1.VolumeReady
	}
}

func copyOf(image, disk string, is v1alpha1.CopyState) func(*controller.State) {
	return func(s *controller.State) {
		s.Copies = append(s.Copies, &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{Name: name(image, disk)},
			Spec:   v1alpha1.BackingImageCopySpec{Image: image, ImageUID: "uid-" + image, DiskUUID: disk},
			Status: v1alpha1.BackingImageCopyStatus{State: is}})
	}
}

func originOf(image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		copyOf(image, disk, v1alpha1.CopyInProgress)(s)
		s.Copies[len(s.Copies)-1].Spec.Origin = true
	}
}

// near says where the bytes are that the image is made of.
func near(only bool, disks ...string) func(*controller.State) {
	return func(s *controller.State) { s.Near = controller.Near{Disks: disks, Only: only} }
}

// failed makes the last copy one that has failed for good.
func failed(s *controller.State) { s.Copies[len(s.Copies)-1].Status.State = v1alpha1.CopyFailed }

// foreignCopy is a copy of an image that had the name before.
func foreignCopy(image, disk string) func(*controller.State) {
	return func(s *controller.State) {
		s.Copies = append(s.Copies, &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.CopyName("uid-old", disk)},
			Spec: v1alpha1.BackingImageCopySpec{Image: image, ImageUID: "uid-old", DiskUUID: disk}})
	}
}

// then is a state of image a at a time that the other helpers count back from.
func then(min func(*v1alpha1.BackingImage), with ...func(*controller.State)) controller.State {
	s := state(image("a", min, func(i *v1alpha1.BackingImage) { i.Spec.SourceType = v1alpha1.SourceDownload }))
	s.Now = epoch
	for _, w := range with {
		w(&s)
	}
	return s
}

func ago(d time.Duration) metav1.Time { return metav1.NewTime(epoch.Add(-d)) }

// ready adds ready copies on disks.
func ready(disks ...string) func(*controller.State) {
	return func(s *controller.State) {
		for _, d := range disks {
			copyOf("a", d, v1alpha1.CopyReady)(s)
			c := s.Copies[len(s.Copies)-1]
			c.CreationTimestamp, c.Status.LastStateTransitionTime, c.Status.ContentDigest = ago(2*time.Hour), ago(2*time.Hour), "digest"
		}
	}
}

// rotten makes a ready copy, the origin, one of which bytes have rotted: in progress while it is repaired, failed when nobody can.
func rotten(disk string, is v1alpha1.CopyState) func(*controller.State) {
	return func(s *controller.State) {
		each(s.Copies, onDisk(disk), func(c *v1alpha1.BackingImageCopy) {
			c.Spec.Origin, c.Status.State, c.Status.BadChunks = true, is, []int64{3}
			c.Status.Reason, c.Status.Message = backingimage.Corrupt.String(), "chunk 3 is damaged"
		})
	}
}

// known makes the image one that was ready.
func known(s *controller.State) { s.Image.Status.ContentDigest = "digest" }

func from(source v1alpha1.SourceType) func(*controller.State) {
	return func(s *controller.State) { s.Image.Spec.SourceType = source }
}

func vanished(what string) func(*controller.State) {
	return func(s *controller.State) { s.Near = controller.Near{Gone: what} }
}

func each[T any](all []T, is func(T) bool, do func(T)) {
	for _, one := range all {
		if is(one) {
			do(one)
		}
	}
}

func onDisk(disk string) func(*v1alpha1.BackingImageCopy) bool {
	return func(c *v1alpha1.BackingImageCopy) bool { return c.Spec.DiskUUID == disk }
}

func used(disk string, before time.Duration) func(*controller.State) {
	return func(s *controller.State) {
		each(s.Copies, onDisk(disk), func(c *v1alpha1.BackingImageCopy) { at := ago(before); c.Status.LastUsedTime = &at })
	}
}

func cleanupOf(disk string) func(*controller.State) {
	return func(s *controller.State) {
		each(s.Copies, onDisk(disk), func(c *v1alpha1.BackingImageCopy) { c.Spec.CleanupRequested = true })
	}
}

func contentOf(disk, digest string) func(*controller.State) {
	return func(s *controller.State) {
		each(s.Copies, onDisk(disk), func(c *v1alpha1.BackingImageCopy) { c.Status.ContentDigest = digest })
	}
}

func mapped(disk string, evict bool) func(*controller.State) {
	return func(s *controller.State) {
		s.Image.Spec.DiskFileSpecMap = map[string]v1alpha1.DiskFileSpec{disk: {EvictionRequested: evict}}
	}
}

func selector(tags ...string) func(*controller.State) {
	return func(s *controller.State) { s.Image.Spec.DiskSelector = tags }
}

func theDisk(name string, do func(*v1alpha1.Disk)) func(*controller.State) {
	return func(s *controller.State) {
		each(s.Disks, func(d *v1alpha1.Disk) bool { return d.Name == name }, do)
	}
}

func theNode(name string, do func(*v1alpha1.StorageNode)) func(*controller.State) {
	return func(s *controller.State) {
		each(s.Nodes, func(n *v1alpha1.StorageNode) bool { return n.Name == name }, do)
	}
}

func prefetch(s *controller.State) { s.Image.Spec.Prefetch = true }

func evictDisk(name string) func(*controller.State) {
	return theDisk(name, func(d *v1alpha1.Disk) { d.Spec.EvictionRequested = true })
}

func evictNode(name string) func(*controller.State) {
	return theNode(name, func(n *v1alpha1.StorageNode) { n.Spec.EvictionRequested = true })
}

func cordon(name string) func(*controller.State) {
	return theNode(name, func(n *v1alpha1.StorageNode) { n.Status.Cordoned = true })
}

func awaySince(d time.Duration) []metav1.Condition {
	c := readyIf(false)
	c.LastTransitionTime = ago(d)
	return []metav1.Condition{c}
}

func nodeAway(name string, since time.Duration) func(*controller.State) {
	return theNode(name, func(n *v1alpha1.StorageNode) { n.Status.Conditions = awaySince(since) })
}

func diskAway(name string, since time.Duration) func(*controller.State) {
	return theDisk(name, func(d *v1alpha1.Disk) { d.Status.Conditions = awaySince(since) })
}

// room gives a disk a capacity and free bytes.
func room(name string, capacity, available int64) func(*controller.State) {
	return theDisk(name, func(d *v1alpha1.Disk) { d.Status.CapacityBytes, d.Status.AvailableBytes = capacity, available })
}

func imageBytes(n int64) func(*controller.State) {
	return func(s *controller.State) { s.Image.Status.RealSize = n }
}

func promised(disk string, bytes int64) func(*controller.State) {
	return func(s *controller.State) { s.Promised = map[string]int64{disk: bytes} }
}

// arrived gives the last copy bytes.
func arrived(bytes int64) func(*controller.State) {
	return func(s *controller.State) { s.Copies[len(s.Copies)-1].Status.BytesDone = bytes }
}

// full makes the last copy one whose disk had no room.
func full(s *controller.State) {
	c := s.Copies[len(s.Copies)-1]
	c.Status.State, c.Status.Reason, c.Status.Message, c.Status.NextTryTime = v1alpha1.CopyFailed, backingimage.Full.String(), "no space", &metav1.Time{Time: epoch}
}

// onDisks are the disks of copies.
func onDisks(copies []string) string {
	var on []string
	for _, c := range copies {
		if _, disk, ok := v1alpha1.ParseCopyName(c); ok {
			on = append(on, disk)
		}
	}
	return strings.Join(on, " ")
}

func copiesIn(notes []controller.Note) []string {
	var all []string
	for _, n := range notes {
		all = append(all, n.Copy)
	}
	return all
}

// everything is all that people read of a decision.
func everything(d controller.Decision, status v1alpha1.BackingImageStatus) string {
	all := []string{status.Message, d.Short, d.Lost}
	for _, disk := range slices.Sorted(maps.Keys(status.DiskFileStatusMap)) {
		f := status.DiskFileStatusMap[disk]
		all = append(all, string(f.State)+": "+f.Message)
	}
	return strings.Join(all, "\n")
}
