package store

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// nodesFresh is how old a directory may be when nobody says that it is too old.
const nodesFresh = 10 * time.Second

// directory is a list of all nodes that is made when it is asked for. An agent's cache has its own node alone: with one of all nodes, every heartbeat
// of each of a thousand would be sent to each of a thousand.
type directory struct {
	nodes *Kind[*v1alpha1.StorageNode]
	clock clock.PassiveClock

	mu    sync.Mutex
	known []*v1alpha1.StorageNode
	at    time.Time
}

// AllNodes returns every node, as whoever connects to one needs them: of a Store that follows all nodes those of its cache; of an agent's
// a list that is not older than 10 s, or older while the API does not answer. The objects are shared: copy before changing.
func (s *Store) AllNodes(ctx context.Context) ([]*v1alpha1.StorageNode, error) {
	if s.directory == nil {
		return s.Nodes.List(), nil
	}
	return s.directory.list(ctx, nodesFresh)
}

// FreshNodes is AllNodes as the API server has them now.
func (s *Store) FreshNodes(ctx context.Context) ([]*v1alpha1.StorageNode, error) {
	if s.directory == nil {
		return s.Nodes.LiveList(ctx)
	}
	return s.directory.list(ctx, 0)
}

// list returns what was listed not longer ago than fresh. 0 asks always, and is told when the API does not answer.
func (d *directory) list(ctx context.Context, fresh time.Duration) ([]*v1alpha1.StorageNode, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known != nil && d.clock.Since(d.at) < fresh {
		return d.known, nil
	}
	asked := d.clock.Now()
	all, err := d.nodes.LiveSelect(ctx, "")
	if err != nil && d.known != nil && fresh > 0 {
		klog.FromContext(ctx).V(2).Info("Going by an old list of nodes", "age", d.clock.Since(d.at), "why", err)
		return d.known, nil
	}
	if err != nil {
		return nil, err
	}
	d.known, d.at = all, asked
	return all, nil
}
