package agent

import (
	"net/netip"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/net/http/httpproxy"
	"k8s.io/apimachinery/pkg/util/validation"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/process"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/backup/object"
)

// Flags of a process with an agent, as they are written.
type Flags struct {
	NodeName string

	dataDir          string
	disks            []string
	poolSize         string
	httpListen       string
	allowSourceCIDRs []string
	maxImageSize     string
	maxFetches       int
	downloadRanges   int
	peerListen       string
	advertiseAddress string
	uploadIdle       time.Duration
	peerBandwidth    string
	scrub            scrubFlags
}

// AddTo adds the flags to a command's. dataDir and nodeName are the help of two whose meaning differs between commands.
func (f *Flags) AddTo(flags *pflag.FlagSet, dataDir, nodeName string) {
	flags.StringVar(&f.dataDir, "data-dir", "/var/lib/plinth", dataDir)
	flags.StringVar(&f.NodeName, "node-name", "", nodeName)
	flags.StringArrayVar(&f.disks, "disk", nil, "`directory` for copies and volumes; may be repeated (default: <data-dir>/disk). On XFS or btrfs it is used as it is; elsewhere a pool file is made in it")
	flags.StringVar(&f.poolSize, "pool-size", "", "`size` of a pool file, e.g. 200Gi; it is sparse (default: 80 % of the free space)")
	flags.StringVar(&f.httpListen, "http-listen", "", process.HTTPListenHelp)
	flags.StringSliceVar(&f.allowSourceCIDRs, "allow-source-cidr", nil, "`CIDR` that images may be downloaded from though it is denied by default (loopback, link-local, metadata); may be repeated")
	flags.StringVar(&f.maxImageSize, "max-image-size", "16Ti", "largest virtual `size` that an image may have")
	flags.IntVar(&f.maxFetches, "max-fetches", 5, "`number` of images fetched at once")
	flags.IntVar(&f.downloadRanges, "download-ranges", 4, "`number` of connections that one large download uses at once")
	flags.StringVar(&f.peerListen, "peer-listen", "127.0.0.1:0", "`address` of the HTTPS server for uploads, downloads and peers; port 0 takes a free one")
	flags.StringVar(&f.advertiseAddress, "advertise-address", "", "`address` where others reach that server, host or host:port (default: where it listens)")
	flags.DurationVar(&f.uploadIdle, "upload-idle", transfer.DefaultIdle, "how long an upload may bring nothing before it expires")
	flags.StringVar(&f.peerBandwidth, "peer-bandwidth", "", "most `bytes` of images a second that are sent to other nodes and to people, e.g. 100Mi (default: no limit)")
	f.scrub.add(flags)
}

// Config is what the flags mean.
type Config struct {
	DataDir     string
	NodeName    string
	CSIEndpoint string
	Node        node.Options // what the flags say of it; New adds the rest
	Backups     object.Openers

	disks      []string
	poolBytes  int64
	httpListen string
	peers      peerConfig
}

// Config checks the flags. What it refuses is Invalid and names the flag.
func (f *Flags) Config() (Config, error) {
	cfg := Config{NodeName: f.NodeName, httpListen: f.httpListen}
	var err error
	if cfg.DataDir, err = filepath.Abs(f.dataDir); err != nil {
		return cfg, program.FlagError("data-dir", "%w", err)
	}
	if problems := validation.IsDNS1123Subdomain(cfg.NodeName); len(problems) > 0 {
		return cfg, program.FlagError("node-name", "%q cannot be the name of a node: %s", cfg.NodeName, problems[0])
	}
	if cfg.disks, err = f.diskPaths(cfg.DataDir); err != nil {
		return cfg, err
	}
	if f.poolSize != "" {
		if cfg.poolBytes, err = program.Size("pool-size", f.poolSize, disk.MinPoolBytes); err != nil {
			return cfg, err
		}
	}
	if err := process.CheckHTTPListen(f.httpListen); err != nil {
		return cfg, err
	}
	if cfg.peers, err = f.peerConfig(cfg.DataDir); err != nil {
		return cfg, err
	}
	return cfg, f.limits(&cfg.Node)
}

func (f *Flags) diskPaths(dataDir string) ([]string, error) {
	if len(f.disks) == 0 {
		return []string{filepath.Join(dataDir, "disk")}, nil
	}
	var paths []string
	for _, d := range f.disks {
		path, err := filepath.Abs(d)
		if err != nil {
			return nil, program.FlagError("disk", "%w", err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// maxDownloadRanges bounds what one download takes of its server, and of memory: two pieces more than connections.
const maxDownloadRanges = 32

// limits are the flags that bound what users may do.
func (f *Flags) limits(o *node.Options) error {
	for _, c := range f.allowSourceCIDRs {
		prefix, err := netip.ParsePrefix(c)
		if err != nil {
			return program.FlagError("allow-source-cidr", "%q is no address range (%w); write e.g. 127.0.0.0/8 or fd00::/8", c, err)
		}
		o.Source.AllowCIDRs = append(o.Source.AllowCIDRs, prefix)
	}
	virtual, err := program.Size("max-image-size", f.maxImageSize, 1)
	if err != nil {
		return err
	}
	o.Limits = format.Limits{MaxVirtualBytes: virtual, MaxSourceBytes: virtual + virtual/8}
	switch {
	case f.maxFetches < 1:
		return program.FlagError("max-fetches", "%d fetches make no image; give at least 1", f.maxFetches)
	case f.downloadRanges < 1 || f.downloadRanges > maxDownloadRanges:
		return program.FlagError("download-ranges", "%d is no number of connections for a download; give 1 to %d", f.downloadRanges, maxDownloadRanges)
	}
	o.MaxFetches = f.maxFetches
	o.Source.Connections = f.downloadRanges
	o.Source.Proxy = httpproxy.FromEnvironment().ProxyFunc()
	o.Version = program.Version
	return f.scrub.apply(o)
}
