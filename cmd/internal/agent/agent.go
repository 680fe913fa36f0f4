// Package agent joins the parts of a node: the agent with its disks, the loop that makes volumes, the CSI socket, the HTTPS
// server of peers and uploads, and what monitors ask for. It is the one place where they are joined, for a process that is only a
// node (`plinth node`) and for one that has the controllers and the API beside it (`plinth standalone`).
package agent

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/process"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/csi"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

// Agent is a node's parts, joined.
type Agent struct {
	// Registry takes the metrics of what else the process runs.
	Registry *prometheus.Registry
	// Address is where others reach the HTTPS server, host:port.
	Address string

	store     *store.Store
	disks     *disk.Set
	node      *node.Agent
	volumes   *provisioner.VolumeLoop
	snapshots *provisioner.SnapshotLoop
	offers    *provisioner.Offers
	backups   *provisioner.BackupLoop
	csi       *csi.Server
	http      *process.HTTP
	peers     *transfer.Server
}

// New makes the parts and gives each what it needs of the others. It takes the port of the HTTPS server, and nothing runs yet.
// secrets are those that images name. controller is what the CSI socket serves beside the node; nil for nothing.
func New(cfg Config, s *store.Store, secrets credential.Reader, controller provisioner.Controller) (*Agent, error) {
	disks, err := disk.NewSet() // the agent opens them
	if err != nil {
		return nil, err
	}
	registry := process.NewRegistry()
	peers, err := cfg.peers.open(cfg.Node.Limits.MaxSourceBytes)
	if err != nil {
		return nil, err
	}
	engines := newEngines(disks)
	offers := provisioner.NewOffers(cfg.NodeName, engines, clock.RealClock{})
	peers.options.Snapshots = offers
	o := cfg.Node
	o.Metrics, o.Exporter, o.Credentials = node.NewMetrics(registry), engines, secrets
	o.Uploads, o.Address, o.PublicKeyHash = peers.uploads, peers.address, peers.identity.PublicKeyHash()
	o.Identity, o.Shares = peers.identity, peers.shares
	o.Disks, o.PoolBytes = cfg.disks, cfg.poolBytes
	repositories := provisioner.NewRepositories(s, cfg.Backups, cfg.Node.Source, secrets)
	o.Restorer = repositories.Image
	a := &Agent{
		Registry: registry, Address: peers.address, store: s, disks: disks, offers: offers,
		node:      node.New(cfg.NodeName, s, disks, o),
		volumes:   provisioner.NewVolumeLoop(s, engines, provisioner.VolumeSources{Offers: offers, Identity: peers.identity, Repositories: repositories}),
		snapshots: provisioner.NewSnapshotLoop(s, engines),
		backups:   provisioner.NewBackupLoop(cfg.NodeName, s, engines, repositories, clock.RealClock{}),
	}
	stageWait := newStageWait(registry)
	a.csi, err = csi.New(csi.Options{
		Endpoint: cfg.CSIEndpoint, Version: program.Version, Durations: process.NewRPCSeconds(registry), Ready: func() error { return process.ReadyNow(a.Ready) }, Controller: controller,
		Node: provisioner.NewAttacher(cfg.NodeName, s, engines, clock.RealClock{}, stageWait.Observe),
	})
	if err != nil {
		return nil, err
	}
	if a.peers, err = peers.server(s, disks, registry); err != nil {
		return nil, err
	}
	a.http = process.NewHTTP(cfg.httpListen, registry, a.Ready)
	return a, nil
}

// newEngines makes each disk's engine when it is needed.
func newEngines(disks *disk.Set) *provisioner.Engines {
	return provisioner.NewEngines(disks, func(d *disk.Disk) engine.Engine {
		return reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
	})
}

func newStageWait(r prometheus.Registerer) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "plinth_stage_wait_seconds", Help: "Time that staging a volume waited for its data.", Buckets: prometheus.ExponentialBuckets(0.001, 5, 10),
	})
	r.MustRegister(h)
	return h
}

// Run runs the parts, and others beside them that use the same store, until ctx ends or one of them fails; then it closes
// the disks.
func (a *Agent) Run(ctx context.Context, others ...process.Part) error {
	parts := append([]process.Part{a.store, a.node, a.volumes, a.snapshots, a.offers, a.backups, a.csi, a.http, a.peers, process.Memory{}}, others...)
	err := process.Run(ctx, parts...)
	return errors.Join(err, process.Stopped(ctx, "disks", a.disks.Close))
}

// Ready returns when requests can be answered: the caches are full, this node is registered, and the socket is served.
func (a *Agent) Ready(ctx context.Context) error {
	if err := a.store.Synced(ctx); err != nil {
		return err
	}
	if err := a.node.Registered(ctx); err != nil {
		return err
	}
	return a.csi.Serving(ctx)
}
