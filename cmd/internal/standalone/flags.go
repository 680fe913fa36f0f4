package standalone

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpproxy"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner"
)

// flags of `plinth standalone` as they are written.
type flags struct {
	dataDir          string
	nodeName         string
	disks            []string
	poolSize         string
	apiListen        string
	httpListen       string
	allowSourceCIDRs []string
	maxImageSize     string
	maxFetches       int
	downloadRanges   int
	overProvisioning int64
	minimalAvailable int64
	peerListen       string
	advertiseAddress string
	uploadIdle       time.Duration
	scrub            scrubFlags
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

The API listens on loopback; <data-dir>/kubeconfig has its address and credentials, for plinth's other commands and
for kubectl. The CSI socket serves Identity, Controller and Node. The first SIGINT or SIGTERM stops gently: volumes that
are mounted stay mounted, and are found again at the next start.

Images are downloaded through the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name, read once at the start; an image may
name another.`,
		Example: `  plinth standalone
  plinth standalone --data-dir /srv/plinth --disk /mnt/xfs1 --disk /mnt/xfs2
  plinth standalone --disk /srv/disk --pool-size 200Gi --allow-source-cidr 10.0.0.0/8`,
		Args: program.Exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config()
			if err != nil {
				return err
			}
			c.csiEndpoint = *endpoint
			return run(cmd.Context(), c, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.dataDir, "data-dir", "/var/lib/plinth", "`directory` of the control plane's data and the kubeconfig")
	flags.StringVar(&f.nodeName, "node-name", "", "`name` of this machine in Plinth's objects and in topology (default: the host name)")
	flags.StringArrayVar(&f.disks, "disk", nil, "`directory` for copies and volumes; may be given several times (default: <data-dir>/disk). On XFS or btrfs it is used as it is; elsewhere a pool file is made in it")
	flags.StringVar(&f.poolSize, "pool-size", "", "`size` of a pool file, e.g. 200Gi; it is sparse (default: 80 % of the free space)")
	flags.StringVar(&f.apiListen, "api-listen", "127.0.0.1:0", "loopback `address` of the embedded API; port 0 takes a free one and keeps it")
	flags.StringVar(&f.httpListen, "http-listen", "", "`address` for /healthz, /readyz and /metrics, e.g. 127.0.0.1:9280 (default: none)")
	flags.StringSliceVar(&f.allowSourceCIDRs, "allow-source-cidr", nil, "`CIDR` that images may be downloaded from though it is denied by default (loopback, link-local, metadata); may be given several times")
	flags.StringVar(&f.maxImageSize, "max-image-size", "16Ti", "largest virtual `size` that an image may have")
	flags.IntVar(&f.maxFetches, "max-fetches", 5, "`number` of images fetched at once")
	flags.IntVar(&f.downloadRanges, "download-ranges", 4, "`number` of connections that one large download uses at once")
	flags.Int64Var(&f.overProvisioning, "over-provisioning", 200, "`percent` of a disk's capacity that may be promised to volumes and images")
	flags.Int64Var(&f.minimalAvailable, "minimal-available", 10, "`percent` of a disk's capacity that must be free for it to get new volumes")
	flags.StringVar(&f.peerListen, "peer-listen", "127.0.0.1:0", "`address` of the HTTPS server for uploads, downloads and peers; port 0 takes a free one")
	flags.StringVar(&f.advertiseAddress, "advertise-address", "", "`address` where others reach that server, host or host:port (default: where it listens)")
	flags.DurationVar(&f.uploadIdle, "upload-idle", transfer.DefaultIdle, "how `long` an upload may bring nothing before it expires")
	f.scrub.add(flags)
	return cmd
}

// Config is what the flags mean.
type Config struct {
	// Openers of image sources, given by the binary that links them.
	Openers map[string]node.Opener

	dataDir     string
	nodeName    string
	disks       []string
	poolBytes   int64
	apiListen   string
	httpListen  string
	csiEndpoint string
	peers       peerConfig
	agent       node.Options
	provisioner provisioner.Options
}

// config checks the flags. What it refuses is Invalid and names the flag.
func (f *flags) config() (Config, error) {
	cfg := Config{apiListen: f.apiListen, httpListen: f.httpListen, nodeName: f.nodeName}
	var err error
	if cfg.dataDir, err = filepath.Abs(f.dataDir); err != nil {
		return cfg, flagError("data-dir", "%w", err)
	}
	if cfg.nodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return cfg, flagError("node-name", "the host name cannot be read (%w); give a name", err)
		}
		cfg.nodeName = strings.ToLower(host)
	}
	if problems := validation.IsDNS1123Subdomain(cfg.nodeName); len(problems) > 0 {
		return cfg, flagError("node-name", "%q cannot be the name of a node: %s", cfg.nodeName, problems[0])
	}
	if cfg.disks, err = f.diskPaths(cfg.dataDir); err != nil {
		return cfg, err
	}
	if f.poolSize != "" {
		if cfg.poolBytes, err = sizeFlag("pool-size", f.poolSize, disk.MinPoolBytes); err != nil {
			return cfg, err
		}
	}
	if f.httpListen != "" {
		if _, _, err := net.SplitHostPort(f.httpListen); err != nil {
			return cfg, flagError("http-listen", "%w; write host:port, e.g. 127.0.0.1:9280", err)
		}
	}
	if cfg.peers, err = f.peerConfig(cfg.dataDir); err != nil {
		return cfg, err
	}
	return cfg, f.limits(&cfg)
}

func (f *flags) diskPaths(dataDir string) ([]string, error) {
	if len(f.disks) == 0 {
		return []string{filepath.Join(dataDir, "disk")}, nil
	}
	var paths []string
	for _, d := range f.disks {
		path, err := filepath.Abs(d)
		if err != nil {
			return nil, flagError("disk", "%w", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// maxDownloadRanges bounds what one download takes of its server, and of memory: two pieces more than connections.
const maxDownloadRanges = 32

// limits are the flags that bound what users may do.
func (f *flags) limits(cfg *Config) error {
	for _, c := range f.allowSourceCIDRs {
		prefix, err := netip.ParsePrefix(c)
		if err != nil {
			return flagError("allow-source-cidr", "%q is no address range (%w); write e.g. 127.0.0.0/8 or fd00::/8", c, err)
		}
		cfg.agent.Source.AllowCIDRs = append(cfg.agent.Source.AllowCIDRs, prefix)
	}
	virtual, err := sizeFlag("max-image-size", f.maxImageSize, 1)
	if err != nil {
		return err
	}
	cfg.agent.Limits = format.Limits{MaxVirtualBytes: virtual, MaxSourceBytes: virtual + virtual/8}
	switch {
	case f.maxFetches < 1:
		return flagError("max-fetches", "%d fetches make no image; give at least 1", f.maxFetches)
	case f.downloadRanges < 1 || f.downloadRanges > maxDownloadRanges:
		return flagError("download-ranges", "%d is no number of connections for a download; give 1 to %d", f.downloadRanges, maxDownloadRanges)
	case f.overProvisioning < 1:
		return flagError("over-provisioning", "%d %% of a disk hold no volume; give at least 1, e.g. 200", f.overProvisioning)
	case f.minimalAvailable < 0 || f.minimalAvailable > 99:
		return flagError("minimal-available", "%d is no percentage of a disk to keep free; give 0 to 99", f.minimalAvailable)
	}
	cfg.agent.MaxFetches = f.maxFetches
	cfg.agent.Source.Connections = f.downloadRanges
	cfg.agent.Source.Proxy = httpproxy.FromEnvironment().ProxyFunc()
	cfg.agent.Version = program.Version
	if err := f.scrub.apply(&cfg.agent); err != nil {
		return err
	}
	cfg.provisioner = provisioner.Options{OverProvisioningPercent: f.overProvisioning, MinimalAvailablePercent: f.minimalAvailable}
	return nil
}

// sizeFlag reads a size in bytes, with or without a unit.
func sizeFlag(flag, value string, least int64) (int64, error) {
	q, err := resource.ParseQuantity(value)
	if err != nil {
		return 0, flagError(flag, "%q is no size; write bytes, or a number with a unit such as 200Gi", value)
	}
	if q.Value() < least {
		return 0, flagError(flag, "%s is too little; give at least %d bytes", value, least)
	}
	return q.Value(), nil
}

func flagError(flag, format string, args ...any) error {
	return backingimage.Errorf(backingimage.Invalid, "--"+flag+": "+format, args...)
}
