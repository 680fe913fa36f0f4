package transfer

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the server.
type Metrics struct {
	requests *prometheus.CounterVec
	refused  *prometheus.CounterVec
	received prometheus.Counter
	served   prometheus.Counter
	toPeers  prometheus.Counter
}

// NewMetrics makes the server's metrics and registers them; r may be nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plinth_transfer_requests_total", Help: "Requests to the agent's HTTPS server, by route and status code.",
		}, []string{"route", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "plinth_transfer_refused_total", Help: "Requests to the agent's HTTPS server that were refused, by reason.",
		}, []string{"reason"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plinth_upload_bytes_total", Help: "Bytes of uploads that arrived at this node.",
		}),
		served: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "plinth_served_bytes_total", Help: "Bytes of images' contents that this node gave to others.",
		}),
	}
	m.toPeers = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "plinth_peer_served_bytes_total", Help: "Bytes of images' contents that this node gave to other nodes.",
	})
	if r != nil {
		r.MustRegister(m.requests, m.refused, m.received, m.served, m.toPeers)
	}
	return m
}
