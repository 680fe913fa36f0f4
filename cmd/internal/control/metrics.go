package control

import (
	"cmp"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// RegisterMetrics registers what the controllers tell: whether this process leads and, while it does, how many objects there are by
// state, so that they are told once however many processes are asked.
func RegisterMetrics(r prometheus.Registerer, s *store.Store, leading func() bool) {
	r.MustRegister(newStateCollector(s, leading), &objectCollector{s, leading, clock.RealClock{}}, newBackupCollector(s, leading), prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "plinth_leader", Help: "1 while this process runs the controllers, 0 while another does.",
	}, func() float64 {
		if leading() {
			return 1
		}
		return 0
	}))
}

// stateCollector counts the objects in the caches by state, when asked.
type stateCollector struct {
	store   *store.Store
	leading func() bool
	images  *prometheus.Desc
	healthy *prometheus.Desc
	copies  *prometheus.Desc
	volumes *prometheus.Desc
	nodes   *prometheus.Desc
	disks   *prometheus.Desc
}

func newStateCollector(s *store.Store, leading func() bool) *stateCollector {
	desc := func(name, help, label string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{label}, nil)
	}
	return &stateCollector{
		store:   s,
		leading: leading,
		images:  desc("plinth_images", "Backing images, by state.", "state"),
		healthy: desc("plinth_images_healthy", "Backing images, by whether as many copies are ready as are wanted.", "healthy"),
		copies:  desc("plinth_copies", "Copies of backing images, by state.", "state"),
		volumes: desc("plinth_volumes", "Volumes, by state.", "state"),
		nodes:   desc("plinth_nodes", "Nodes, by whether they are ready.", "ready"),
		disks:   desc("plinth_disks", "Disks, by whether they are ready.", "ready"),
	}
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.images, c.healthy, c.copies, c.volumes, c.nodes, c.disks} {
		ch <- d
	}
}

// copyStates and volumeStates are counted also when there are none of them.
var (
	copyStates = []v1alpha1.CopyState{v1alpha1.CopyPending, v1alpha1.CopyStarting, v1alpha1.CopyInProgress, v1alpha1.CopyReady,
		v1alpha1.CopyFailed, v1alpha1.CopyUnknown, v1alpha1.CopyEvicting}
	volumeStates = []v1alpha1.VolumeState{v1alpha1.VolumePending, v1alpha1.VolumeReady, v1alpha1.VolumeFailed}
)

// Collect implements prometheus.Collector. A copy's state is what its image says of it, which knows of evictions.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	if !c.leading() {
		return
	}
	images, healthy, copies := zeros(copyStates), yesNo(), zeros(copyStates)
	for _, i := range c.store.Images.List() {
		images[string(cmp.Or(i.Status.State, v1alpha1.CopyPending))]++
		healthy[condition(i.Status.Conditions, v1alpha1.ConditionHealthy)]++
		for _, f := range i.Status.DiskFileStatusMap {
			copies[string(f.State)]++
		}
	}
	volumes := zeros(volumeStates)
	for _, v := range c.store.Volumes.List() {
		volumes[string(cmp.Or(v.Status.State, v1alpha1.VolumePending))]++
	}
	nodes, disks := yesNo(), yesNo()
	for _, n := range c.store.Nodes.List() {
		nodes[condition(n.Status.Conditions, v1alpha1.ConditionReady)]++
	}
	for _, d := range c.store.Disks.List() {
		disks[condition(d.Status.Conditions, v1alpha1.ConditionReady)]++
	}
	send(ch, c.images, images)
	send(ch, c.healthy, healthy)
	send(ch, c.copies, copies)
	send(ch, c.volumes, volumes)
	send(ch, c.nodes, nodes)
	send(ch, c.disks, disks)
}

func send(ch chan<- prometheus.Metric, d *prometheus.Desc, counts map[string]int) {
	for label, n := range counts {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), label)
	}
}

func zeros[S ~string](states []S) map[string]int {
	counts := map[string]int{}
	for _, s := range states {
		counts[string(s)] = 0
	}
	return counts
}

func yesNo() map[string]int { return map[string]int{"true": 0, "false": 0} }

func condition(conditions []metav1.Condition, kind string) string {
	return strconv.FormatBool(meta.IsStatusConditionTrue(conditions, kind))
}
