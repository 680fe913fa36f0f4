// Package controllertest makes big clusters on paper, to measure plans by.
package controllertest

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/controller"
)

const gib = 1 << 30

// Cluster returns what is to be planned for each of the images of a cluster of nodes with a disk each. Every other image is on
// every node (prefetch), the others on every tenth, with a minimum of 3; one node in twenty is silent, one in fifty evicts; ten volumes of
// each image exist, two wait.
func Cluster(nodes, images int) []controller.State {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var disks []*v1alpha1.Disk
	var machines []*v1alpha1.StorageNode
	promised := map[string]int64{}
	for n := range nodes {
		disks, machines = append(disks, disk(n)), append(machines, machine(n, now))
		promised[disks[n].Name] = int64(n%300) * gib
	}
	var all []controller.State
	for i := range images {
		s := controller.State{Image: image(i), Disks: disks, Nodes: machines, Promised: promised, Now: now}
		for n := range nodes {
			if s.Image.Spec.Prefetch || n%10 == i%10 {
				s.Copies = append(s.Copies, ready(s.Image, disks[n], now))
			}
		}
		for v := range 10 {
			s.Volumes = append(s.Volumes, volume(s.Image, disks[(i*37+v*101)%nodes], v, now))
		}
		all = append(all, s)
	}
	return all
}

func disk(n int) *v1alpha1.Disk {
	d := &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("disk-%d", n)}, Spec: v1alpha1.DiskSpec{NodeName: nodeName(n), Tags: []string{"ssd", "fast"}}}
	d.Status = v1alpha1.DiskStatus{CapacityBytes: 1000 * gib, AvailableBytes: int64(200+n%700) * gib, Conditions: conditions(true, time.Time{})}
	return d
}

func machine(n int, now time.Time) *v1alpha1.StorageNode {
	m := &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: nodeName(n)}, Spec: v1alpha1.StorageNodeSpec{Tags: []string{"zone-a"}, EvictionRequested: n%50 == 7}}
	m.Status.Conditions = conditions(n%20 != 3, now.Add(-time.Minute))
	return m
}

func nodeName(n int) string { return fmt.Sprintf("node-%d", n) }

func conditions(ready bool, since time.Time) []metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, LastTransitionTime: metav1.NewTime(since)}
	if !ready {
		c.Status, c.Message = metav1.ConditionFalse, "nothing was heard of its agent"
	}
	return []metav1.Condition{c}
}

func image(n int) *v1alpha1.BackingImage {
	name := fmt.Sprintf("image-%d", n)
	i := &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}
	i.Spec = v1alpha1.BackingImageSpec{SourceType: v1alpha1.SourceDownload, MinNumberOfCopies: 3, Prefetch: n%2 == 0, DiskSelector: []string{"fast"}, NodeSelector: []string{"zone-a"}}
	i.Status.RealSize, i.Status.ContentDigest = 4*gib, "digest"
	return i
}

func ready(i *v1alpha1.BackingImage, d *v1alpha1.Disk, now time.Time) *v1alpha1.BackingImageCopy {
	return &v1alpha1.BackingImageCopy{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.CopyName(string(i.UID), d.Name), CreationTimestamp: metav1.NewTime(now.Add(-24 * time.Hour))},
		Spec:       v1alpha1.BackingImageCopySpec{Image: i.Name, ImageUID: string(i.UID), DiskUUID: d.Name, NodeName: d.Spec.NodeName},
		Status: v1alpha1.BackingImageCopyStatus{State: v1alpha1.CopyReady, Progress: 100, ContentDigest: "digest", RealSize: 4 * gib,
			LastStateTransitionTime: metav1.NewTime(now.Add(-23 * time.Hour))},
	}
}

func volume(i *v1alpha1.BackingImage, d *v1alpha1.Disk, n int, now time.Time) *v1alpha1.Volume {
	v := &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-volume-%d", i.Name, n), CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}}
	v.Spec = v1alpha1.VolumeSpec{DiskUUID: d.Name, NodeName: d.Spec.NodeName, Image: &v1alpha1.VolumeImage{Name: i.Name, UID: string(i.UID)}}
	if n > 1 {
		v.Status.State = v1alpha1.VolumeReady
	}
	return v
}
