package standalone

import (
	"context"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/cmd/internal/agent"
	"plinth.dev/plinth/cmd/internal/control"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/backup/object"
)

// flags of `plinth standalone` as they are written.
type flags struct {
	agent.Flags
	control   control.Flags
	apiListen string
}

// NewCommand is `plinth standalone`: it checks the flags and gives what they mean to run. The binaries that have the
// command differ in what they run. endpoint is the value of a flag that every command has.
func NewCommand(endpoint *string, run func(ctx context.Context, c Config, out io.Writer) error) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "standalone",
		Short: "Run everything on this machine: control plane, agent and CSI driver",
		Long: `Run Plinth on one machine, with nothing beside it: an embedded Kubernetes API for its objects, the controllers, the agent
and the CSI driver, in one process.

The API listens on loopback unless --api-listen says otherwise; <data-dir>/kubeconfig has its address and credentials, for
plinth's other commands and for kubectl. Other machines join it with plinth node, and a kubeconfig of their own from plinth
node join-config. The CSI socket serves Identity, Controller and Node. The first SIGINT or SIGTERM stops gently: volumes that
are mounted stay mounted, and are found again at the next start.

Images are downloaded through the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name, read once at the start; an image may
name another.`,
		Example: `  plinth standalone
  plinth standalone --data-dir /srv/plinth --disk /mnt/xfs1 --disk /mnt/xfs2
  plinth standalone --disk /srv/disk --pool-size 200Gi --allow-source-cidr 10.0.0.0/8
  plinth standalone --api-listen 0.0.0.0:6443 --peer-listen 0.0.0.0:9281 --advertise-address node-1.example.org`,
		Args: program.Exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config()
			if err != nil {
				return err
			}
			c.agent.CSIEndpoint = *endpoint
			return run(cmd.Context(), c, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	f.AddTo(flags, "`directory` of the control plane's data and the kubeconfig", "`name` of this machine in Plinth's objects and in topology (default: the host name)")
	flags.StringVar(&f.apiListen, "api-listen", "127.0.0.1:0", "`address` of the embedded API; port 0 takes a free one and keeps it. Beyond loopback others reach it at the host of --advertise-address")
	f.control.AddTo(flags)
	return cmd
}

// Config is what the flags mean.
type Config struct {
	// Openers of image sources, given by the binary that links them.
	Openers map[string]node.Opener
	// Backups are the openers of backup targets.
	Backups object.Openers

	agent     agent.Config
	control   control.Config
	apiListen string
}

// config checks the flags. What it refuses is Invalid and names the flag.
func (f *flags) config() (Config, error) {
	cfg := Config{apiListen: f.apiListen}
	if f.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return cfg, program.FlagError("node-name", "the host name cannot be read (%w); give a name", err)
		}
		f.NodeName = strings.ToLower(host)
	}
	var err error
	if cfg.agent, err = f.Flags.Config(); err != nil {
		return cfg, err
	}
	if err := f.api(cfg.agent.AdvertiseHost()); err != nil {
		return cfg, err
	}
	if cfg.control, err = f.control.Config(); err != nil {
		return cfg, err
	}
	cfg.agent.Node.Heartbeat = min(node.DefaultHeartbeat, cfg.control.Loops.Settings.NodeSilence/3)
	return cfg, nil
}

// api checks that others can be told where the API is. What else may be wrong with its address, the API says.
func (f *flags) api(advertise string) error {
	host, _, err := net.SplitHostPort(f.apiListen)
	if err != nil {
		return program.FlagError("api-listen", "%w; write host:port, e.g. 0.0.0.0:6443", err)
	}
	if ip := net.ParseIP(host); (host == "" || ip != nil && ip.IsUnspecified()) && advertise == "" {
		return program.FlagError("advertise-address", "--api-listen %s is every address of this machine; say with which of them others reach it", f.apiListen)
	}
	return nil
}
