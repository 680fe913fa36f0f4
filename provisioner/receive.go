package provisioner

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/parallel"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
)

// receipts are the snapshots that come to this node's disks from other disks and nodes, each for a volume. They come as copies of images
// do: chunk by chunk, each compared with the manifest. What is there stays in staging, so that a killed agent goes on there.
type receipts struct {
	store    *store.Store
	engines  *Engines
	offers   *Offers
	identity *transfer.Identity
	clock    clock.Clock
	wake     func(volume string)

	mu      sync.Mutex
	running map[string]*receipt // by volume
	places  chan struct{}       // one for each that may be at work
}

// receipt is one attempt.
type receipt struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex
	progress fetch.Progress
	rate     int64
	err      error
	at       time.Time // of its end
}

const (
	receiptPlaces = 5
	receiptTick   = 2 * time.Second // how often it is told how far one is
	receiptRetry  = 5 * time.Second // after an attempt that failed
)

func newReceipts(s *store.Store, engines *Engines, from VolumeSources, wake func(string)) *receipts {
	return &receipts{store: s, engines: engines, offers: from.Offers, identity: from.Identity, clock: clock.RealClock{}, wake: wake, running: map[string]*receipt{}, places: make(chan struct{}, receiptPlaces)}
}

// receive returns the path of a file with the content of a snapshot on the volume's disk when all of it has come. NotReady, with how far
// it is, while it comes; ctx bounds the whole transfer.
func (r *receipts) receive(ctx context.Context, volume string, d *disk.Disk, s *v1alpha1.Snapshot) (path string, err error) {
	dir := d.Layout().StagedReceipt(volume)
	if record, err := fetch.Load(dir); err == nil && record.ImageUID == string(s.UID) {
		r.stop(volume)
		return fetch.ContentPath(dir), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.running[volume]; now != nil {
		select {
		case <-now.ended:
			if now.err != nil && r.clock.Since(now.at) < receiptRetry {
				return "", now.state(s)
			}
		default:
			return "", now.state(s)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	now := &receipt{cancel: cancel, ended: make(chan struct{}), progress: fetch.Progress{Total: -1}}
	r.running[volume] = now
	go r.run(ctx, volume, dir, s, now)
	return "", now.state(s)
}

// run is one attempt.
func (r *receipts) run(ctx context.Context, volume, dir string, s *v1alpha1.Snapshot, now *receipt) {
	log := klog.FromContext(ctx)
	defer r.wake(volume)
	defer close(now.ended)
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return
	}
	log.Info("Receiving a snapshot", "volume", volume, "snapshot", s.Name, "from", s.Spec.NodeName, "disk", s.Spec.DiskUUID)
	began := r.clock.Now()
	var speed fetch.Speedometer
	told := began
	err := parallel.Guard(ctx, func() error {
		return r.fetch(ctx, dir, s, func(p fetch.Progress) {
			at := r.clock.Now()
			now.mu.Lock()
			now.progress, now.rate = p, speed.Observe(at, p.Step, p.Bytes)
			now.mu.Unlock()
			if at.Sub(told) >= receiptTick {
				told = at
				r.wake(volume)
			}
		})
	})
	now.mu.Lock()
	now.err, now.at = err, r.clock.Now()
	now.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		log.Info("A snapshot has not come; it is tried again", "volume", volume, "snapshot", s.Name, "reason", err.Error())
	} else if err == nil {
		log.Info("Received a snapshot", "volume", volume, "snapshot", s.Name, "took", r.clock.Since(began))
	}
}

// fetch gets the content. What it is, its node says, which is asked first.
func (r *receipts) fetch(ctx context.Context, dir string, s *v1alpha1.Snapshot, report func(fetch.Progress)) error {
	peers, err := r.peers(ctx, s)
	if err != nil {
		return err
	}
	record, err := peers[0].Record(ctx)
	peers[0].Close()
	if err != nil {
		return err
	}
	_, err = fetch.FromPeers(ctx, fetch.PeerJob{
		Dir: dir, Image: s.Name, ImageUID: string(s.UID), What: "snapshot " + s.Name, ContentDigest: record.ContentDigest,
		Peers: func(ctx context.Context) ([]fetch.Peer, error) { return r.peers(ctx, s) },
	}, report)
	return err
}

// peers is who has the snapshot: its node, as it is reached now. The API server is asked: the cache has only this node.
func (r *receipts) peers(ctx context.Context, s *v1alpha1.Snapshot) ([]fetch.Peer, error) {
	if _, here := r.engines.of(s.Spec.DiskUUID); here && r.offers != nil {
		return []fetch.Peer{peer{r.offers, s}}, nil
	}
	n, err := r.store.Nodes.Live(ctx, s.Spec.NodeName)
	switch {
	case r.identity == nil:
		return nil, backingimage.Errorf(backingimage.Unsupported, "snapshot %s is on node %s, and this node gets nothing from others", s.Name, s.Spec.NodeName)
	case err != nil && !backingimage.Is(err, backingimage.NotFound):
		return nil, err
	case err != nil || n.Status.Address == "" || n.Status.PublicKeyHash == "":
		return nil, backingimage.Errorf(backingimage.NotReady, "node %s, which has snapshot %s, does not say where it is reached", s.Spec.NodeName, s.Name)
	}
	return []fetch.Peer{transfer.NewSnapshotPeer(r.identity, n.Name, n.Status.Address, n.Status.PublicKeyHash, string(s.UID))}, nil
}

// stop ends what is received for a volume, and returns when it has ended.
func (r *receipts) stop(volume string) {
	r.mu.Lock()
	now := r.running[volume]
	delete(r.running, volume)
	r.mu.Unlock()
	if now != nil {
		now.cancel()
		<-now.ended
	}
}

// stopAll ends all.
func (r *receipts) stopAll() {
	r.mu.Lock()
	var volumes []string
	for v := range r.running {
		volumes = append(volumes, v)
	}
	r.mu.Unlock()
	for _, v := range volumes {
		r.stop(v)
	}
}

// drop ends what is received for a volume, and removes what has come.
func (r *receipts) drop(volume string, d *disk.Disk) error {
	r.stop(volume)
	if err := os.RemoveAll(d.Layout().StagedReceipt(volume)); err != nil {
		return fmt.Errorf("remove what was received: %w", err)
	}
	return nil
}

// state is what there is to say of an attempt: an error that its end cannot be mended by another, else NotReady.
func (a *receipt) state(s *v1alpha1.Snapshot) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	what := fmt.Sprintf("receiving snapshot %s from node %s", s.Name, s.Spec.NodeName)
	if a.err != nil {
		if backingimage.Is(a.err, backingimage.Full) {
			return a.err
		}
		return backingimage.Errorf(backingimage.NotReady, "%s: interrupted, and tried again: %w", what, a.err)
	}
	p, text := a.progress, what
	if p.Total > 0 {
		text += fmt.Sprintf(": %s %d %% of %s", p.Step, p.Bytes*100/p.Total, backingimage.SizeText(p.Total))
		if a.rate > 0 {
			text += fmt.Sprintf(", %s/s, %d s left", backingimage.SizeText(a.rate), (p.Total-p.Bytes+a.rate-1)/a.rate)
		}
	}
	if p.Trouble != "" {
		text += " (" + p.Trouble + ")"
	}
	return backingimage.Errorf(backingimage.NotReady, "%s", text)
}
