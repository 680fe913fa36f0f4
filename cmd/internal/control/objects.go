package control

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// objectCollector tells of single objects what an alert must name: of images and disks, which there are few of, and never of volumes.
type objectCollector struct {
	store   *store.Store
	leading func() bool
	clock   clock.PassiveClock
}

var (
	imageReady  = prometheus.NewDesc("plinth_image_copies_ready", "Ready copies of an image.", []string{"image"}, nil)
	imageWanted = prometheus.NewDesc("plinth_image_copies_wanted", "Copies that an image shall have.", []string{"image"}, nil)
	diskBytes   = prometheus.NewDesc("plinth_disk_capacity_bytes", "Size of a disk's filesystem.", []string{"node", "disk", "path"}, nil)
	diskFree    = prometheus.NewDesc("plinth_disk_available_bytes", "Bytes that are free on a disk.", []string{"node", "disk", "path"}, nil)
	diskReady   = prometheus.NewDesc("plinth_disk_ready", "1 while a disk can be used, else 0.", []string{"node", "disk", "path"}, nil)
	diskFull    = prometheus.NewDesc("plinth_disk_full", "1 while a disk has no room for anything new, else 0.", []string{"node", "disk", "path"}, nil)
	diskOrphans = prometheus.NewDesc("plinth_disk_orphans", "Volumes on a disk that no object knows.", []string{"node", "disk", "path"}, nil)
	abnormal    = prometheus.NewDesc("plinth_volumes_abnormal", "Volumes that were ready and are in trouble.", nil, nil)
	pendingAge  = prometheus.NewDesc("plinth_volumes_oldest_pending_seconds", "Age of the oldest volume that is still pending; 0 when there is none.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *objectCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{imageReady, imageWanted, diskBytes, diskFree, diskReady, diskFull, diskOrphans, abnormal, pendingAge} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *objectCollector) Collect(ch chan<- prometheus.Metric) {
	if !c.leading() {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	for _, i := range c.store.Images.List() {
		var ready, wanted int
		if _, err := fmt.Sscanf(i.Status.Copies, "%d/%d", &ready, &wanted); err != nil {
			continue // its first plan is not made yet
		}
		gauge(imageReady, float64(ready), i.Name)
		gauge(imageWanted, float64(wanted), i.Name)
	}
	for _, d := range c.store.Disks.List() {
		gauge(diskBytes, float64(d.Status.CapacityBytes), d.Spec.NodeName, d.Name, d.Spec.Path)
		gauge(diskFree, float64(d.Status.AvailableBytes), d.Spec.NodeName, d.Name, d.Spec.Path)
		gauge(diskReady, oneIf(meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady)), d.Spec.NodeName, d.Name, d.Spec.Path)
		gauge(diskFull, oneIf(meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionFull)), d.Spec.NodeName, d.Name, d.Spec.Path)
		gauge(diskOrphans, float64(orphanVolumes(d)), d.Spec.NodeName, d.Name, d.Spec.Path)
	}
	gauge(abnormal, float64(abnormalVolumes(c.store.Volumes.List())))
	gauge(pendingAge, oldestPending(c.store.Volumes.List(), c.clock.Now()).Seconds())
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// orphanVolumes are the volumes on a disk that no object knows; such copies of images are removed by machine.
func orphanVolumes(d *v1alpha1.Disk) (n int) {
	for _, o := range d.Status.Orphans {
		if o.Kind == v1alpha1.OrphanVolume {
			n++
		}
	}
	return n
}

// abnormalVolumes are those that were ready and have something to say since.
func abnormalVolumes(volumes []*v1alpha1.Volume) (n int) {
	for _, v := range volumes {
		if v.Status.State == v1alpha1.VolumeReady && v.Status.Reason != "" {
			n++
		}
	}
	return n
}

// oldestPending is the age of the oldest volume that is not there yet.
func oldestPending(volumes []*v1alpha1.Volume, now time.Time) time.Duration {
	var oldest time.Duration
	for _, v := range volumes {
		if (v.Status.State == "" || v.Status.State == v1alpha1.VolumePending) && v.DeletionTimestamp == nil {
			oldest = max(oldest, now.Sub(v.CreationTimestamp.Time))
		}
	}
	return oldest
}
