package provisioner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/provisioner/engine"
)

// Offers are a node's snapshots as they are given to other disks and nodes: with a manifest, which is computed when the first one asks, and
// kept beside the snapshot.
type Offers struct {
	engines *Engines
	clock   clock.PassiveClock
	node    string

	life   context.Context // of what computes manifests
	stop   context.CancelFunc
	making sync.WaitGroup
	places chan struct{} // one for each that may be computed at once

	mu   sync.Mutex
	made map[string]*offer // by the UID of the Snapshot object
}

var _ transfer.Snapshots = (*Offers)(nil)

// offer is a snapshot whose manifest is being computed, or is there.
type offer struct {
	ready chan struct{} // closed when share or err is set
	done  atomic.Int64  // bytes
	share *fetch.Share
	err   error
	used  time.Time
}

// offerPlaces is how many snapshots are read at once to compute their manifests, whoever asks.
const offerPlaces = 2

// Times of offers.
const (
	offerWait = 3 * time.Second  // how long a request waits for a manifest before it is told how far that is
	offerIdle = 10 * time.Minute // how long a manifest is kept in memory that nobody asks for
)

// NewOffers makes the Offers of the named node.
func NewOffers(node string, engines *Engines, c clock.PassiveClock) *Offers {
	life, stop := context.WithCancel(context.Background())
	return &Offers{engines: engines, clock: c, node: node, life: life, stop: stop, places: make(chan struct{}, offerPlaces), made: map[string]*offer{}}
}

// Run returns, when ctx has ended, as soon as no snapshot is being read any more: the disks can be closed then.
func (o *Offers) Run(ctx context.Context) error {
	<-ctx.Done()
	o.mu.Lock()
	o.stop() // none begins after this
	o.mu.Unlock()
	o.making.Wait()
	return nil
}

// Share implements transfer.Snapshots.
func (o *Offers) Share(ctx context.Context, s *v1alpha1.Snapshot) (*fetch.Share, error) {
	f := o.begin(ctx, s)
	timer := time.NewTimer(offerWait)
	defer timer.Stop()
	select {
	case <-f.ready:
		return f.share, f.err
	case <-timer.C:
		return nil, backingimage.Errorf(backingimage.NotReady, "node %s is reading snapshot %s, to compute its digests: %d %% of %s",
			o.node, s.Name, f.done.Load()*100/max(s.Status.Bytes, 1), backingimage.SizeText(s.Status.Bytes))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// begin returns the offer of a snapshot, and begins it if there is none.
func (o *Offers) begin(ctx context.Context, s *v1alpha1.Snapshot) *offer {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.clock.Now()
	for uid, f := range o.made {
		select {
		case <-f.ready:
			if now.Sub(f.used) > offerIdle || f.err != nil && uid == string(s.UID) {
				delete(o.made, uid)
			}
		default:
		}
	}
	f := o.made[string(s.UID)]
	if f == nil {
		f = &offer{ready: make(chan struct{})}
		o.made[string(s.UID)] = f
		if f.err = o.life.Err(); f.err != nil {
			close(f.ready)
			return f
		}
		log := klog.FromContext(ctx)
		o.making.Go(func() { o.make(klog.NewContext(o.life, log), s, f) }) // it outlives the request: others will ask for it, too
	}
	f.used = now
	return f
}

// make computes the manifest, or reads it.
func (o *Offers) make(ctx context.Context, s *v1alpha1.Snapshot, f *offer) {
	defer close(f.ready)
	err := parallel.Guard(ctx, func() error {
		select {
		case o.places <- struct{}{}:
			defer func() { <-o.places }()
		case <-ctx.Done():
			return ctx.Err()
		}
		path, m, err := o.manifest(ctx, s, f.done.Store)
		if err == nil {
			f.share = fetch.ShareOf(path, fetch.RecordOf(s.Name, string(s.UID), m), m)
		}
		return err
	})
	if err != nil {
		f.err = fmt.Errorf("offer snapshot %s: %w", s.Name, err)
	}
}

func (o *Offers) manifest(ctx context.Context, s *v1alpha1.Snapshot, done func(int64)) (path string, m *manifest.Manifest, err error) {
	e, mine := o.engines.of(s.Spec.DiskUUID)
	d, open := o.engines.disks.Get(s.Spec.DiskUUID)
	if !mine || !open {
		return "", nil, backingimage.Errorf(backingimage.NotReady, "disk %s, which holds it, is not open on node %s", s.Spec.DiskUUID, o.node)
	}
	content, err := e.Open(ctx, engine.From{Snapshot: s.Name})
	if err != nil {
		return "", nil, err
	}
	defer content.Close()
	info, err := content.Stat()
	if err != nil {
		return "", nil, err
	}
	kept := filepath.Join(d.Layout().Snapshot(s.Name), disk.ManifestFile)
	if text, rerr := os.ReadFile(kept); rerr == nil {
		if m, perr := manifest.Parse(text); perr == nil && m.Bytes() == info.Size() {
			return content.Name(), m, nil
		}
	}
	began := o.clock.Now()
	if m, err = fetch.Digest(ctx, content, info.Size(), done); err != nil {
		return "", nil, err
	}
	klog.FromContext(ctx).Info("Computed the digests of a snapshot", "snapshot", s.Name, "bytes", m.DataBytes(), "took", o.clock.Since(began))
	if err := durable.WriteFile(kept, m.Encode(), 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
		klog.FromContext(ctx).Error(err, "Cannot keep the digests of a snapshot; they are computed again when they are needed", "snapshot", s.Name)
	}
	return content.Name(), m, nil
}

// Extents implements transfer.Snapshots.
func (o *Offers) Extents(ctx context.Context, s, base *v1alpha1.Snapshot) (int64, []transfer.Extent, error) {
	e, mine := o.engines.of(s.Spec.DiskUUID)
	if !mine {
		return 0, nil, backingimage.Errorf(backingimage.NotReady, "disk %s, which holds snapshot %s, is not open on node %s", s.Spec.DiskUUID, s.Name, o.node)
	}
	var since engine.From
	if base != nil {
		if base.Spec.DiskUUID != s.Spec.DiskUUID {
			return 0, nil, differentDisks(s, base)
		}
		since.Snapshot = base.Name
	}
	info, err := e.StatSnapshot(ctx, s.Name)
	if err != nil {
		return 0, nil, err
	}
	found, err := e.Extents(ctx, engine.From{Snapshot: s.Name}, since)
	if err != nil {
		return 0, nil, err
	}
	list := make([]transfer.Extent, len(found))
	for i, x := range found {
		list[i] = transfer.Extent(x)
	}
	return info.Bytes, list, nil
}

func differentDisks(s, base *v1alpha1.Snapshot) error {
	return backingimage.Errorf(backingimage.Precondition, "snapshots %s and %s are on different disks, so that their blocks cannot be compared; compare the contents, or take a full backup", base.Name, s.Name)
}

// peer is a snapshot of this node as a fetch.Peer, for another disk of this node.
type peer struct {
	offers   *Offers
	snapshot *v1alpha1.Snapshot
}

var _ fetch.Peer = peer{}

// Node implements fetch.Peer.
func (p peer) Node() string { return p.offers.node }

// Endpoint implements fetch.Peer.
func (p peer) Endpoint() string { return "here" }

// Manifest implements fetch.Peer.
func (p peer) Manifest(ctx context.Context) ([]byte, error) {
	share, err := p.offers.Share(ctx, p.snapshot)
	if err != nil {
		return nil, err
	}
	return share.Manifest.Encode(), nil
}

// Record implements fetch.Peer.
func (p peer) Record(ctx context.Context) (fetch.Record, error) {
	share, err := p.offers.Share(ctx, p.snapshot)
	if err != nil {
		return fetch.Record{}, err
	}
	return share.Record, nil
}

// Chunks implements fetch.Peer.
func (p peer) Chunks(ctx context.Context, _ string) (manifest.Bitmap, error) {
	share, err := p.offers.Share(ctx, p.snapshot)
	if err != nil {
		return nil, err
	}
	return share.Chunks(), nil
}

// Data implements fetch.Peer.
func (p peer) Data(ctx context.Context, offset, bytes int64, _ bool) (io.ReadCloser, error) {
	share, err := p.offers.Share(ctx, p.snapshot)
	if err != nil {
		return nil, err
	}
	f, err := share.Open()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, offset, bytes), f}, nil
}

// Close implements fetch.Peer.
func (p peer) Close() {}
