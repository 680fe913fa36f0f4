package standalone

import (
	"cmp"

	"github.com/prometheus/client_golang/prometheus"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// metrics of the process as a whole; each part has its own beside them.
type metrics struct {
	rpcSeconds       *prometheus.HistogramVec
	stageWaitSeconds prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		rpcSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "plinth_csi_rpc_seconds", Help: "Duration of CSI calls, by method and gRPC code.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}, []string{"method", "code"}),
		stageWaitSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plinth_stage_wait_seconds", Help: "Time that staging a volume waited for its data.", Buckets: prometheus.ExponentialBuckets(0.001, 5, 10),
		}),
	}
	r.MustRegister(m.rpcSeconds, m.stageWaitSeconds)
	return m
}

// stateCollector counts the objects in the caches by state, when asked.
type stateCollector struct {
	store   *store.Store
	copies  *prometheus.Desc
	volumes *prometheus.Desc
}

func newStateCollector(s *store.Store) *stateCollector {
	return &stateCollector{
		store:   s,
		copies:  prometheus.NewDesc("plinth_copies", "Copies of backing images, by state.", []string{"state"}, nil),
		volumes: prometheus.NewDesc("plinth_volumes", "Volumes, by state.", []string{"state"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.copies; ch <- c.volumes }

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	copies := map[v1alpha1.CopyState]int{v1alpha1.CopyPending: 0, v1alpha1.CopyInProgress: 0, v1alpha1.CopyReady: 0, v1alpha1.CopyFailed: 0}
	for _, b := range c.store.Copies.List() {
		copies[cmp.Or(b.Status.State, v1alpha1.CopyPending)]++
	}
	for state, n := range copies {
		ch <- prometheus.MustNewConstMetric(c.copies, prometheus.GaugeValue, float64(n), string(state))
	}
	volumes := map[v1alpha1.VolumeState]int{v1alpha1.VolumePending: 0, v1alpha1.VolumeReady: 0, v1alpha1.VolumeFailed: 0}
	for _, v := range c.store.Volumes.List() {
		volumes[cmp.Or(v.Status.State, v1alpha1.VolumePending)]++
	}
	for state, n := range volumes {
		ch <- prometheus.MustNewConstMetric(c.volumes, prometheus.GaugeValue, float64(n), string(state))
	}
}
