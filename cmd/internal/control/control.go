// Package control joins the parts of a process that decides: the CSI Controller service, and the loops that give images their copies
// and listen to nodes. `plinth controller` is such a process and nothing else; `plinth standalone` has the loops beside an agent.
//
// Several controllers may run beside each other. All of them serve CSI, and one, the leader, runs the loops:
//
//   - Serving CSI needs no leader. A call decides from the caches and writes one object under a name that follows from the volume's,
//     so the API server is the one that says which of two equal calls came first; Idempotent then compares. Who asks is one anyway: the
//     sidecars of each replica talk to their own socket, and elect a leader among themselves, each kind of sidecar its own. It may
//     be in another replica than the loops' leader, which is why a replica that does not lead must not refuse.
//   - The loops are one writer by design: two plans at once, each from its own caches, could each count on the copy that the other
//     removes. The leader holds a Lease (see leader).
package control

import (
	"context"
	"fmt"
	"io"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/cluster"
	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/credential/kubernetes"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/process"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/csi"
	"plinth.dev/plinth/provisioner"
)

// Loops are those of a cluster, of which one process at a time may run them. They run once: a new term has new loops, so that nothing
// is left in them of what they knew in an earlier one.
func Loops(s *store.Store, o controller.Options, r *provisioner.Repositories) process.Part {
	return loops{
		controller.NewImages(s, o), controller.NewNodes(s, o), controller.NewTeller(s, o), controller.NewDrains(s, o), provisioner.NewAbandoned(s), provisioner.NewReaders(s), provisioner.NewPoints(s),
		provisioner.NewBackupController(s, r), provisioner.NewBackupTargets(s, r, clock.RealClock{}), provisioner.NewBackupPolicies(s, clock.RealClock{}),
		provisioner.NewBackupTeller(s, o.Recorder),
	}
}

type loops []process.Part

// Run works until ctx ends.
func (l loops) Run(ctx context.Context) error { return process.Run(ctx, l...) }

// Run is `plinth controller`: a process that decides and nothing else, until ctx ends or a part of it dies. The API may be away; everything
// waits for it.
func Run(ctx context.Context, cfg ProcessConfig, api *rest.Config, out io.Writer) error {
	api, requests := process.API(api, "plinth-controller")
	p, err := join(cfg, api)
	if err != nil {
		return err
	}
	p.registry.MustRegister(requests)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return process.Run(ctx, p.store, p.events, p.machines, p.csi, p.http, p.leader, process.Memory{})
	})
	group.Go(func() error {
		if p.Ready(ctx) == nil {
			fmt.Fprintf(out, "plinth is ready: controller %s, CSI on %s, API at %s\n", cfg.Identity, cfg.CSIEndpoint, api.Host)
		}
		return nil
	})
	return group.Wait()
}

// parts are those of a controller's process, joined.
type parts struct {
	registry *prometheus.Registry
	store    *store.Store
	events   *cluster.Events
	machines *cluster.Nodes
	csi      *csi.Server
	http     *process.HTTP
	leader   process.Part
}

// join makes the parts and gives each what it needs of the others. Nothing runs yet.
func join(cfg ProcessConfig, api *rest.Config) (*parts, error) {
	s, err := store.New(api, store.Options{})
	if err != nil {
		return nil, err
	}
	secrets, err := kubernetes.New(api)
	if err != nil {
		return nil, err
	}
	claims, err := cluster.NewClaims(api)
	if err != nil {
		return nil, err
	}
	events, err := cluster.NewEvents(api, cfg.Identity, clock.RealClock{})
	if err != nil {
		return nil, err
	}
	machines, err := cluster.NewNodes(api)
	if err != nil {
		return nil, err
	}
	storage, err := cluster.NewStorage(api)
	if err != nil {
		return nil, err
	}
	cfg.Provisioner.Credentials, cfg.Loops.Credentials = secrets, secrets
	cfg.Provisioner.Claims, cfg.Loops.Recorder = claims, events
	repositories := provisioner.NewRepositories(s, cfg.Backups, cfg.Source, secrets)
	cfg.Provisioner.Repositories = repositories
	p := &parts{registry: process.NewRegistry(), store: s, events: events, machines: machines}
	p.csi, err = csi.New(csi.Options{
		Endpoint: cfg.CSIEndpoint, Version: program.Version, Durations: process.NewRPCSeconds(p.registry), Ready: func() error { return process.ReadyNow(p.Ready) },
		Controller: provisioner.Idempotent{Controller: provisioner.New(s, cfg.Provisioner)},
	})
	if err != nil {
		return nil, err
	}
	newLoops := func() process.Part {
		return loops{Loops(s, cfg.Loops, repositories), controller.NewMachines(s, machines, cfg.Loops), provisioner.NewTeller(s, events, clock.RealClock{}),
			provisioner.NewPopulator(s, storage, events, csi.DefaultDriverName, cfg.Provisioner.Namespace)}
	}
	l, err := newLeader(cfg.Election, api, newLoops)
	if err != nil {
		return nil, err
	}
	p.leader = l
	RegisterMetrics(p.registry, s, l.Leading)
	p.http = process.NewHTTP(cfg.HTTPListen, p.registry, p.Ready)
	return p, nil
}

// Ready returns when requests can be answered, whoever leads: the caches are full and the socket is served.
func (p *parts) Ready(ctx context.Context) error {
	if err := p.store.Synced(ctx); err != nil {
		return err
	}
	return p.csi.Serving(ctx)
}
