package agent

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/process"
	"plinth.dev/plinth/cmd/internal/program"
)

// NodeFlags are those of `plinth node`.
type NodeFlags struct {
	Flags
	heartbeat time.Duration
}

// AddTo adds the flags to a command's.
func (f *NodeFlags) AddTo(flags *pflag.FlagSet) {
	f.Flags.AddTo(flags, "`directory` of the agent's key, its secrets and its disk", "`name` of this machine in Plinth's objects and in topology: the command runs the agent when it is given")
	flags.DurationVar(&f.heartbeat, "heartbeat", node.DefaultHeartbeat, "time between two signs of life; the controllers' --node-silence must leave room for three")
}

// Config checks the flags. What it refuses is Invalid and names the flag.
func (f *NodeFlags) Config() (Config, error) {
	if f.heartbeat < leastHeartbeat {
		return Config{}, program.FlagError("heartbeat", "%s is too often for the API; give at least %s", f.heartbeat, leastHeartbeat)
	}
	cfg, err := f.Flags.Config()
	cfg.Node.Heartbeat = f.heartbeat
	return cfg, err
}

const leastHeartbeat = time.Second

// RunNode is a process that is a node and nothing else, until ctx ends or a part of it dies. The API may be away: what has
// nothing to do with it goes on, the rest waits.
func RunNode(ctx context.Context, cfg Config, api *rest.Config, out io.Writer) error {
	api, requests := process.API(api, "plinth-node")
	s, err := store.New(api, store.Options{NodeName: cfg.NodeName})
	if err != nil {
		return err
	}
	secrets, err := openSecrets(api, cfg.DataDir)
	if err != nil {
		return err
	}
	a, err := New(cfg, s, secrets, nil)
	if err != nil {
		return err
	}
	a.Registry.MustRegister(requests)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.Run(ctx) })
	group.Go(func() error {
		if a.Ready(ctx) == nil {
			fmt.Fprintf(out, "plinth is ready: node %s, CSI on %s, peers on %s, API at %s\n", cfg.NodeName, cfg.CSIEndpoint, a.Address, api.Host)
		}
		return nil
	})
	return group.Wait()
}
