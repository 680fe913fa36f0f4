package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/durable"
)

const closeEtcd = "close etcd"

// startEtcd returns when etcd has elected its only member and answers.
func (s *Server) startEtcd(ctx context.Context) error {
	if err := s.dir.beginEtcd(); err != nil {
		return err
	}
	e, err := openEtcd(etcdConfig(s.dir, newEtcdLogger(klog.FromContext(ctx), s.end)))
	if err != nil {
		return err
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
		return s.dir.finishEtcd()
	case <-s.ended:
		return s.cause
	case <-ctx.Done():
		return ctx.Err()
	}
}

// openEtcd returns what etcd has to say of damaged data as an error, also when it says it with a panic.
func openEtcd(cfg *embed.Config) (e *embed.Etcd, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
		if err != nil {
			err = fmt.Errorf("open its data in %s: %w; if it is damaged, restore the directory from a backup, or move it away to begin with an empty one", cfg.Dir, err)
		}
	}()
	return embed.StartEtcd(cfg)
}

// beginEtcd makes etcd's first start one that can be killed. etcd itself cannot: between making its log and writing the
// first entry, which says that it is its own only member, it leaves data with which it waits for ever to be elected. So a
// mark is there from before its directory exists until it is ready for the first time, and data with the mark is discarded.
// It holds nothing: the API has not been open yet.
func (l layout) beginEtcd() error {
	if exists, err := exists(l.unfinished); err != nil {
		return err
	} else if exists {
		if err := os.RemoveAll(l.etcd); err != nil {
			return fmt.Errorf("discard what an interrupted first start left: %w", err)
		}
	}
	if exists, err := exists(l.etcd); exists || err != nil {
		return err
	}
	return durable.WriteFile(l.unfinished, nil, 0o600)
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// finishEtcd declares etcd's data good; it was already, if this is not the first start.
func (l layout) finishEtcd() error {
	if err := os.Remove(l.unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(l.private)
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

	// The library leaves this at zero, which describes every request in a warning.
	cfg.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration

	// An election among one needs no patience: this is most of what a start costs.
	cfg.TickMs = 50
	cfg.ElectionMs = 250
	return cfg
}
