package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Metrics of the agent.
type Metrics struct {
	transitions  *prometheus.CounterVec
	sourceBytes  prometheus.Counter
	peerBytes    prometheus.Counter
	retries      *prometheus.CounterVec
	fetchSeconds prometheus.Histogram
	failures     *prometheus.CounterVec
	scrubbed     prometheus.Counter
	badChunks    prometheus.Counter
	repairs      *prometheus.CounterVec
}

// NewMetrics makes the agent's metrics and registers them; r may be nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		transitions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plinth_copy_transitions_total", Help: "Changes of state of copies on this node, by the new state.",
		}, []string{"state"}),
		sourceBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plinth_source_bytes_total", Help: "Bytes of the source files of the copies that this node fetched from their source.",
		}),
		peerBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plinth_peer_bytes_total", Help: "Bytes of images' contents that this node got from other nodes and found right.",
		}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plinth_chunk_retries_total", Help: "Chunks that another node did not give as it should and that were asked of elsewhere, by reason.",
		}, []string{"reason"}),
		fetchSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "plinth_fetch_seconds", Help: "Time from the start of a successful fetch to the ready copy.", Buckets: prometheus.ExponentialBuckets(0.1, 3, 10),
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plinth_fetch_failures_total", Help: "Fetches that ended in an error, by its kind.",
		}, []string{"kind"}),
		scrubbed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plinth_scrubbed_bytes_total", Help: "Bytes of ready copies that were read again and compared with their manifests.",
		}),
		badChunks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plinth_bad_chunks_total", Help: "Chunks of copies on this node that were found damaged.",
		}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plinth_repaired_chunks_total", Help: "Chunks of copies on this node that were written anew, by where they came from.",
		}, []string{"from"}),
	}
	if r != nil {
		r.MustRegister(m.transitions, m.sourceBytes, m.peerBytes, m.retries, m.fetchSeconds, m.failures, m.scrubbed, m.badChunks, m.repairs)
	}
	return m
}

func (m *Metrics) transition(to v1alpha1.CopyState) { m.transitions.WithLabelValues(string(to)).Inc() }

func (m *Metrics) fetched(took time.Duration) {
	m.fetchSeconds.Observe(took.Seconds())
}

func (m *Metrics) fetchFailed(kind backingimage.Kind) {
	m.failures.WithLabelValues(kind.String()).Inc()
}

func (m *Metrics) repaired(mended map[string][]int64) {
	for from, chunks := range mended {
		m.repairs.WithLabelValues(from).Add(float64(len(chunks)))
	}
}
