package store

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// nodesFresh is how old a directory may be when nobody says that it is too old; until nodesStale, who asks is not kept waiting for a
// newer one.
const (
	nodesFresh = 5 * time.Second
	nodesStale = 10 * time.Second
)

// directory is a list of all nodes that is made when it is asked for. An agent's cache has its own node alone: with one of all nodes, every heartbeat
// of each of a thousand would be sent to each of a thousand.
type directory struct {
	nodes *Kind[*v1alpha1.StorageNode]
	clock clock.PassiveClock

	listing sync.Mutex // held by who asks the API

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
	known, at := d.last()
	age := d.clock.Since(at)
	switch {
	case known == nil || fresh == 0 || age >= nodesStale:
		return d.renew(ctx, fresh)
	case age >= fresh && d.listing.TryLock():
		d.listing.Unlock()
		go func() { _, _ = d.renew(context.WithoutCancel(ctx), fresh) }() // who asks after nodesStale is told of errors
	}
	return known, nil
}

// last is the last list, and when it was asked for.
func (d *directory) last() ([]*v1alpha1.StorageNode, time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known, d.at
}

// renew asks the API server, unless somebody else has while this waited. An API server that hangs ends it after nodesStale.
func (d *directory) renew(ctx context.Context, fresh time.Duration) ([]*v1alpha1.StorageNode, error) {
	ctx, cancel := context.WithTimeout(ctx, nodesStale)
	defer cancel()
	began := d.clock.Now()
	d.listing.Lock()
	defer d.listing.Unlock()
	known, at := d.last()
	if known != nil && (at.After(began) || d.clock.Since(at) < fresh) {
		return known, nil
	}
	asked := d.clock.Now()
	all, err := d.nodes.LiveSelect(ctx, "")
	if err != nil && known != nil && fresh > 0 {
		klog.FromContext(ctx).V(2).Info("Going by an old list of nodes", "age", d.clock.Since(at), "why", err)
		return known, nil
	}
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known, d.at = all, asked
	return all, nil
}
