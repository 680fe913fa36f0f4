// Package standalone joins the parts of a process that is everything on one machine: it is the only place where parts are
// joined. It does not link the control plane, which is given to Run: the command's flags can so be told and checked by a
// binary that does not carry it.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/csi"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

// stopTimeout bounds a gentle stop.
const stopTimeout = 20 * time.Second

// API is the control plane that the process brings along.
type API interface {
	// Start returns when the API answers.
	Start(ctx context.Context) error
	// Wait returns when a part of it died, with why.
	Wait() error
	Stop(ctx context.Context) error
	RESTConfig() *rest.Config
	Kubeconfig() string // the path of a file with which others reach it
}

// Run runs everything in this process until ctx ends or a part of it dies, and stops it in the opposite order: requests
// first, then the loops and fetches, the disks, and last the API that all of them write to. newAPI makes the control plane.
func Run(ctx context.Context, c Config, newAPI func(dataDir, listen string) (API, error), out io.Writer) (err error) {
	api, err := newAPI(c.dataDir, c.apiListen)
	if err != nil {
		return err
	}
	if err := api.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopped(ctx, "control plane", api.Stop)) }()
	disks, err := disk.NewSet() // the agent opens them
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopped(ctx, "disks", disks.Close)) }()
	parts, err := join(c, api.RESTConfig(), disks)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return died(ctx, "control plane", api.Wait) })
	parts.run(ctx, group)
	group.Go(func() error {
		if parts.ready(ctx) == nil {
			fmt.Fprintf(out, "plinth is ready: CSI on %s, API in %s; try: plinth --kubeconfig %s image ls\n", c.csiEndpoint, api.Kubeconfig(), api.Kubeconfig())
		}
		return nil
	})
	return group.Wait()
}

// parts are the running parts of a process, joined.
type parts struct {
	store   *store.Store
	agent   *node.Agent
	images  *controller.Images
	nodes   *controller.Nodes
	volumes *provisioner.VolumeLoop
	csi     *csi.Server
	http    *httpServer
	peers   *transfer.Server
}

// join makes the parts and gives each what it needs of the others. Nothing runs yet.
func join(cfg Config, api *rest.Config, disks *disk.Set) (*parts, error) {
	s, err := store.New(api, store.Options{})
	if err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newStateCollector(s))
	metrics := newMetrics(registry)
	secrets, err := credential.OpenDirectory(filepath.Join(cfg.dataDir, secretsDirectory))
	if err != nil {
		return nil, err
	}
	engines := newEngines(disks)
	cfg.agent.Metrics, cfg.agent.Exporter, cfg.agent.Credentials = node.NewMetrics(registry), engines, secrets
	cfg.agent.Openers, cfg.provisioner.Credentials, cfg.images.Credentials = cfg.Openers, secrets, secrets
	peers, err := cfg.peers.open(cfg.agent.Limits.MaxSourceBytes)
	if err != nil {
		return nil, err
	}
	cfg.agent.Uploads, cfg.agent.Address, cfg.agent.PublicKeyHash = peers.uploads, peers.address, peers.identity.PublicKeyHash()
	cfg.agent.Identity, cfg.agent.Shares = peers.identity, peers.shares
	cfg.agent.Disks, cfg.agent.PoolBytes = cfg.disks, cfg.poolBytes
	agent := node.New(cfg.nodeName, s, disks, cfg.agent)
	p := &parts{store: s, agent: agent, images: controller.NewImages(s, cfg.images), nodes: controller.NewNodes(s, cfg.images), volumes: provisioner.NewVolumeLoop(s, engines)}
	p.csi, err = csi.New(csi.Options{
		Endpoint: cfg.csiEndpoint, Version: program.Version, Durations: metrics.rpcSeconds, Ready: p.readyNow,
		Controller: provisioner.Idempotent{Controller: provisioner.New(s, cfg.provisioner)},
		Node:       provisioner.NewAttacher(cfg.nodeName, s, engines, clock.RealClock{}, metrics.stageWaitSeconds.Observe),
	})
	if err != nil {
		return nil, err
	}
	if p.peers, err = peers.server(s, disks, registry); err != nil {
		return nil, err
	}
	p.http = newHTTPServer(cfg.httpListen, registry, p.ready)
	return p, nil
}

// secretsDirectory is the directory of secrets below that of the data.
const secretsDirectory = "secrets"

// newEngines makes each disk's engine when it is needed.
func newEngines(disks *disk.Set) *provisioner.Engines {
	return provisioner.NewEngines(disks, func(d *disk.Disk) engine.Engine {
		return reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
	})
}

// run starts every part under the group.
func (p *parts) run(ctx context.Context, group *errgroup.Group) {
	for _, part := range []interface{ Run(context.Context) error }{p.store, p.agent, p.images, p.nodes, p.volumes, p.csi, p.http, p.peers} {
		group.Go(func() error { return part.Run(ctx) })
	}
}

// ready returns when requests can be answered: the caches are full, this node is registered, and the socket is served.
func (p *parts) ready(ctx context.Context) error {
	if err := p.store.Synced(ctx); err != nil {
		return err
	}
	if err := p.agent.Registered(ctx); err != nil {
		return err
	}
	return p.csi.Serving(ctx)
}

// readyNow is ready without much of a wait: NotReady while this process starts.
func (p *parts) readyNow() error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := p.ready(ctx); err != nil {
		return backingimage.Errorf(backingimage.NotReady, "plinth is starting: %w", err)
	}
	return nil
}

// stopped runs one step of a stop within its time, whatever ended ctx, and names it in its error.
func stopped(ctx context.Context, what string, stop func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := stop(ctx); err != nil {
		return fmt.Errorf("stop %s: %w", what, err)
	}
	return nil
}

// died waits for a part that should not end before ctx does.
func died(ctx context.Context, what string, wait func() error) error {
	ended := make(chan error, 1)
	go func() { ended <- wait() }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		klog.FromContext(ctx).Error(err, "A part of this process ended", "part", what)
		return fmt.Errorf("%s ended: %w", what, err)
	}
}
