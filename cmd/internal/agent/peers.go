package agent

import (
	"net"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/program"
)

// peerConfig is what the flags say of the HTTPS server.
type peerConfig struct {
	listen     string
	advertise  string // host or host:port; "": where it listens
	identity   string // directory of the agent's key
	uploadIdle time.Duration
	bandwidth  int64 // bytes a second; 0: no limit
}

func (f *Flags) peerConfig(dataDir string) (peerConfig, error) {
	p := peerConfig{listen: f.peerListen, advertise: f.advertiseAddress, identity: filepath.Join(dataDir, "agent"), uploadIdle: f.uploadIdle}
	host, _, err := net.SplitHostPort(f.peerListen)
	switch {
	case err != nil:
		return p, program.FlagError("peer-listen", "%w; write host:port, e.g. 127.0.0.1:0", err)
	case p.advertise == "" && unspecified(host):
		return p, program.FlagError("advertise-address", "--peer-listen %s is every address of this machine; say with which of them others reach it", f.peerListen)
	case f.uploadIdle <= 0:
		return p, program.FlagError("upload-idle", "%s leaves no time to upload anything; give e.g. 1h", f.uploadIdle)
	}
	if f.peerBandwidth != "" {
		p.bandwidth, err = program.Size("peer-bandwidth", f.peerBandwidth, 1)
	}
	return p, err
}

func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// AdvertiseHost is the host in --advertise-address, without a port; "" when the flag is not given.
func (c *Config) AdvertiseHost() string {
	if host, _, err := net.SplitHostPort(c.peers.advertise); err == nil {
		return host
	}
	return c.peers.advertise
}

// peers are the HTTPS server's parts before it is made.
type peers struct {
	listener net.Listener
	identity *transfer.Identity
	uploads  *transfer.Uploads
	shares   *fetch.Shares
	address  string // for others
	options  transfer.Options
}

// open makes the agent's key at the first start, and takes the port.
func (p peerConfig) open(maxUpload int64) (*peers, error) {
	identity, err := transfer.OpenIdentity(p.identity)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", p.listen)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "--peer-listen: %w", err)
	}
	shares := fetch.NewShares()
	return &peers{
		listener: l, identity: identity, uploads: transfer.NewUploads(p.uploadIdle, maxUpload, clock.RealClock{}), shares: shares,
		address: p.address(l.Addr().String()), options: transfer.Options{BytesPerSecond: p.bandwidth, Shares: shares, LocalDir: transfer.LocalDir},
	}, nil
}

// address is what others are told, given where the server listens.
func (p peerConfig) address(listening string) string {
	if p.advertise == "" {
		return listening
	}
	if _, _, err := net.SplitHostPort(p.advertise); err == nil {
		return p.advertise
	}
	_, port, _ := net.SplitHostPort(listening)
	return net.JoinHostPort(p.advertise, port)
}

// server makes the HTTPS server.
func (p *peers) server(s *store.Store, disks *disk.Set, r prometheus.Registerer) (*transfer.Server, error) {
	o := p.options
	o.Metrics = transfer.NewMetrics(r)
	return transfer.NewServer(p.listener, p.identity, s, disks, p.uploads, o)
}
