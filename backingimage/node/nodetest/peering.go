package nodetest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
)

// Peering is a Machine's HTTPS server and how it asks others.
type Peering struct {
	// BytesPerSecond of the server at the most; 0 is no limit.
	BytesPerSecond int64
	// Advertise returns the address that others are told, given where the server listens; may be nil.
	Advertise func(listening string) string
	// Snapshots makes what gives the snapshots of the disks that are open, from the next Start on; may be nil.
	Snapshots func(*disk.Set) transfer.Snapshots
	// Patience and Stall are those of fetch.PeerJob.
	Patience, Stall time.Duration

	Address  string               // where the server listens; a new one after each Start
	Identity *transfer.Identity   // kept over Starts
	Metrics  *prometheus.Registry // of the agent and of the server; a new one after each Start

	dir string // of the key
}

// Cluster makes Machines that share an API and give images to each other, the first of which runs the image controller. Each
// has one disk. It starts nothing.
func Cluster(tb testing.TB, api *rest.Config, names ...string) []*Machine {
	var list []*Machine
	for i, name := range names {
		m := New(tb, api, name)
		m.AgentOnly = i > 0
		m.Peering = &Peering{Patience: 5 * time.Second, Stall: 2 * time.Second}
		list = append(list, m)
	}
	return list
}

// start makes the server and what the agent needs to ask others.
func (p *Peering) start(m *Machine, s *store.Store, o *node.Options) Part {
	m.tb.Helper()
	if p.dir == "" {
		dir, err := os.MkdirTemp(m.tb.TempDir(), "agent-")
		must(m.tb, err)
		p.dir = dir
	}
	var err error
	p.Identity, err = transfer.OpenIdentity(filepath.Join(p.dir, "key"))
	must(m.tb, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(m.tb, err)
	p.Address, p.Metrics = listener.Addr().String(), prometheus.NewRegistry()
	o.Identity, o.PublicKeyHash, o.Shares, o.Metrics = p.Identity, p.Identity.PublicKeyHash(), fetch.NewShares(), node.NewMetrics(p.Metrics)
	o.Address, o.PeerPatience, o.PeerStall = p.Address, p.Patience, p.Stall
	if p.Advertise != nil {
		o.Address = p.Advertise(p.Address)
	}
	var snapshots transfer.Snapshots
	if p.Snapshots != nil {
		snapshots = p.Snapshots(m.Set)
	}
	server, err := transfer.NewServer(listener, p.Identity, s, m.Set, transfer.NewUploads(0, 0, clock.RealClock{}), transfer.Options{
		BytesPerSecond: p.BytesPerSecond, Shares: o.Shares, Snapshots: snapshots, Metrics: transfer.NewMetrics(p.Metrics),
	})
	must(m.tb, err)
	return server
}

// Count is the sum of a counter's values whose labels include the given ones, written name, value, name, value.
func (p *Peering) Count(tb testing.TB, name string, labels ...string) float64 {
	tb.Helper()
	families, err := p.Metrics.Gather()
	must(tb, err)
	total := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, metric := range f.GetMetric() {
			has := map[string]string{}
			for _, l := range metric.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			fits := true
			for i := 0; i+1 < len(labels); i += 2 {
				fits = fits && has[labels[i]] == labels[i+1]
			}
			if fits {
				total += metric.GetCounter().GetValue()
			}
		}
	}
	return total
}
