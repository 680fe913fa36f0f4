package embedded

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/klog/v2"
)

const closeEtcd = "close etcd"

// startEtcd returns when etcd has elected its only member and answers.
func (s *Server) startEtcd(ctx context.Context) error {
	e, err := embed.StartEtcd(etcdConfig(s.dir, newEtcdLogger(klog.FromContext(ctx), s.end)))
	if err != nil {
		return fmt.Errorf("open its data in %s: %w", s.dir.etcd, err)
	}
	s.onStop(closeEtcd, closer(e.Close))
	go func() {
		select {
		case err := <-e.Err():
			s.end(fmt.Errorf("serve etcd: %w", err))
		case <-e.Server.StopNotify():
			s.end(errors.New("etcd stopped by itself"))
		case <-s.ended:
		}
	}()
	select {
	case <-e.Server.ReadyNotify():
		return nil
	case <-s.ended:
		return s.cause
	case <-ctx.Done():
		return ctx.Err()
	}
}

// closer makes a blocking function one that ctx can cut short. A second call waits for the first call's end.
func closer(end func()) func(context.Context) error {
	var done chan struct{}
	return func(ctx context.Context) error {
		if done == nil {
			done = make(chan struct{})
			go func() {
				defer close(done)
				end()
			}()
		}
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// etcdConfig is a single member that nobody but the API server in this process can reach.
func etcdConfig(dir layout, logger etcdLogger) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = "plinth"
	cfg.Dir = dir.etcd
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)

	socket := url.URL{Scheme: "unix", Path: dir.socket}
	cfg.ListenClientUrls = []url.URL{socket}
	cfg.ListenPeerUrls = nil                                  // no second member, so no peer socket either
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name) // an identity that etcd wants; nobody dials it
	cfg.EnableGRPCGateway = false

	// The raft log stays in memory until a snapshot: with the defaults up to 15,000 entries, 60 MB of status writes.
	cfg.SnapshotCount = 1000
	cfg.SnapshotCatchUpEntries = 100
	cfg.MaxSnapFiles = 2
	cfg.MaxWalFiles = 2 // of 64 MB each

	// Compaction frees pages for reuse, but the file keeps its size; a start with this much to gain rewrites it.
	cfg.BootstrapDefragThresholdMegabytes = 64

	// An election among one needs no patience: this is most of what a start costs.
	cfg.TickMs = 50
	cfg.ElectionMs = 250
	return cfg
}
