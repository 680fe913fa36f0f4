// Package standalone joins the parts of a process that is everything on one machine: the node's (see package agent), and the
// controllers and the API beside them. It does not link the control plane, which is given to Run: the command's flags can so be told and
// checked by a binary that does not carry it.
package standalone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/agent"
	"plinth.dev/plinth/cmd/internal/control"
	"plinth.dev/plinth/cmd/internal/process"
	"plinth.dev/plinth/provisioner"
)

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

// APIConfig says where an API keeps its data and where it is found.
type APIConfig struct {
	DataDir   string
	Listen    string // host:port
	Advertise string // host at which others reach it when it listens beyond loopback; "": the one of Listen
}

// Run runs everything in this process until ctx ends or a part of it dies, and stops it in the opposite order: requests
// first, then the loops and fetches, the disks, and last the API that all of them write to. newAPI makes the control plane.
func Run(ctx context.Context, c Config, newAPI func(APIConfig) (API, error), out io.Writer) (err error) {
	api, err := newAPI(APIConfig{DataDir: c.agent.DataDir, Listen: c.apiListen, Advertise: c.agent.AdvertiseHost()})
	if err != nil {
		return err
	}
	if err := api.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, process.Stopped(ctx, "control plane", api.Stop)) }()
	parts, err := join(c, api.RESTConfig())
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return died(ctx, "control plane", api.Wait) })
	group.Go(func() error { return parts.agent.Run(ctx, parts.loops) })
	group.Go(func() error {
		if parts.agent.Ready(ctx) == nil {
			fmt.Fprintf(out, "plinth is ready: CSI on %s, API in %s; try: plinth --kubeconfig %s image ls\n", c.agent.CSIEndpoint, api.Kubeconfig(), api.Kubeconfig())
		}
		return nil
	})
	return group.Wait()
}

// parts are the running parts of a process, joined.
type parts struct {
	agent *agent.Agent
	loops process.Part
}

// join makes the parts and gives each what it needs of the others. Nothing runs yet.
func join(cfg Config, api *rest.Config) (*parts, error) {
	s, err := store.New(api, store.Options{})
	if err != nil {
		return nil, err
	}
	secrets, err := credential.OpenDirectory(filepath.Join(cfg.agent.DataDir, agent.SecretsDirectory))
	if err != nil {
		return nil, err
	}
	cfg.agent.Node.Openers, cfg.agent.Backups = cfg.Openers, cfg.Backups
	repositories := provisioner.NewRepositories(s, cfg.Backups, cfg.agent.Node.Source, secrets)
	cfg.control.Provisioner.Repositories = repositories
	cfg.control.Provisioner.Credentials, cfg.control.Loops.Credentials = secrets, secrets
	a, err := agent.New(cfg.agent, s, secrets, provisioner.Idempotent{Controller: provisioner.New(s, cfg.control.Provisioner)})
	if err != nil {
		return nil, err
	}
	control.RegisterMetrics(a.Registry, s, func() bool { return true })
	return &parts{agent: a, loops: control.Loops(s, cfg.control.Loops, repositories)}, nil
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
