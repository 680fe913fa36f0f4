// Package node is the agent of one machine: it registers the machine and its disks, keeps saying that they are there,
// and makes, adopts and removes the copies that BackingImageCopy objects ask of its disks. A fetch is a goroutine
// under the agent; what it has fetched is in the disk's staging directory, so that a killed agent goes on there.
//
// The object is the wish, the disk is the truth, the status is the report. A copy on disk without an object is removed;
// an object without a copy on disk gets one; an object that already has one is reported ready, whoever made it.
//
// Disks forget. Ready copies are read again from time to time (see scrubs), a chunk that differs from the manifest is marked beside the
// copy before anything else is done about it, and is written anew from the nearest who has it (see repair). While there is a mark
// nothing is made of the copy. A copy whose files are gone is made anew.
package node

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
)

// Options of an Agent.
type Options struct {
	Version          string            // of this program, for StorageNode.status
	Source           source.Options    // what downloads may reach, and how; 4 connections by default
	Credentials      credential.Reader // of images' secrets; nil when there are none
	Exporter         Exporter          // of this node's volumes; nil when there are none
	Openers          map[string]Opener // of sources beside http and https, by scheme: they are large, so that not every program links them
	Limits           format.Limits     // what an image may be
	Uploads          *transfer.Uploads // what is uploaded to this node; nil when nothing can be
	Address          string            // host:port where peers and people reach this node's server; "" when there is none
	PublicKeyHash    string            // of that server
	MaxFetches       int               // fetches at once; default 5
	Heartbeat        time.Duration     // default 20 s
	ProgressInterval time.Duration     // least time between two progress reports of a fetch; default 2 s
	Peers            ChunkSource       // of images' chunks, for repairs; nil when there are none
	ScrubInterval    time.Duration     // how often every ready copy is read again; default 168 h
	ScrubRate        int64             // how fast, in bytes per second, unless somebody asked for it; default 50 MB/s
	RetryBase        time.Duration     // wait after the first failed fetch; doubles; default 1 min
	RetryMax         time.Duration     // default 5 min
	Clock            clock.WithTicker
	Metrics          *Metrics // may be nil
}

func (o Options) withDefaults() Options {
	if o.MaxFetches == 0 {
		o.MaxFetches = 5
	}
	if o.Source.Connections == 0 {
		o.Source.Connections = 4
	}
	if o.Heartbeat == 0 {
		o.Heartbeat = 20 * time.Second
	}
	if o.ProgressInterval == 0 {
		o.ProgressInterval = 2 * time.Second
	}
	if o.ScrubInterval == 0 {
		o.ScrubInterval = 7 * 24 * time.Hour
	}
	if o.ScrubRate == 0 {
		o.ScrubRate = 50_000_000
	}
	if o.RetryBase == 0 {
		o.RetryBase = time.Minute
	}
	if o.RetryMax == 0 {
		o.RetryMax = 5 * time.Minute
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return o
}

// Agent is the agent of the node named Name.
type Agent struct {
	name    string
	store   *store.Store
	disks   map[string]*disk.Disk // by UUID
	options Options
	loop    *reconcile.Loop
	fetches *fetches
	scrubs  *scrubs

	registered chan struct{} // closed when the node and its disks are
}

// New makes the agent of a node and its open disks. It starts nothing. Two disks with one UUID are a Conflict.
func New(name string, s *store.Store, disks []*disk.Disk, o Options) (*Agent, error) {
	a := &Agent{name: name, store: s, disks: map[string]*disk.Disk{}, options: o.withDefaults(), registered: make(chan struct{})}
	for _, d := range disks {
		if other, twice := a.disks[d.UUID()]; twice {
			return nil, backingimage.Errorf(backingimage.Conflict, "disks %s and %s both say that they are disk %s; one is a copy of the other: remove it, or delete its %s and its volumes to make it a new disk",
				other.Path(), d.Path(), d.UUID(), disk.IdentityFile)
		}
		a.disks[d.UUID()] = d
	}
	a.loop = reconcile.New("copies", a, reconcile.Options{Clock: a.options.Clock})
	a.fetches = newFetches(a.options.MaxFetches)
	a.scrubs = newScrubs()
	return a, nil
}

// Run registers the node and works until ctx ends and every fetch has stopped.
func (a *Agent) Run(ctx context.Context) error {
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("node", a.name))
	if err := a.store.Synced(ctx); err != nil {
		return err
	}
	if err := a.register(ctx); err != nil {
		return err
	}
	close(a.registered)
	defer a.store.Copies.OnChange(a.copyChanged)()
	defer a.store.Images.OnChange(func(i *v1alpha1.BackingImage) {
		a.wake(string(i.UID))
		a.wakeNear(func(other *v1alpha1.BackingImage) bool { return other.Spec.Clones(i.Name) })
	})()
	defer a.store.Volumes.OnChange(func(v *v1alpha1.Volume) {
		a.wakeNear(func(i *v1alpha1.BackingImage) bool { return i.Spec.Exports(v) })
	})()
	a.enqueueFound(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.loop.Run(ctx) })
	group.Go(func() error { return a.heartbeats(ctx) })
	group.Go(func() error { return a.scrubAll(ctx) })
	err := group.Wait()
	a.scrubs.stopAll()
	a.fetches.stopAll()
	return err
}

// Registered returns when the node and its disks are registered, or with ctx's error.
func (a *Agent) Registered(ctx context.Context) error {
	select {
	case <-a.registered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("register node %s: %w", a.name, ctx.Err())
	}
}

// copyChanged looks again at the copy, and at the copies of its image that may have waited for it.
func (a *Agent) copyChanged(c *v1alpha1.BackingImageCopy) {
	a.loop.Enqueue(c.Name)
	if c.VerifyPending() {
		a.scrubs.wake()
	}
	if c.Status.State == v1alpha1.CopyReady {
		a.wake(c.Spec.ImageUID)
	}
	a.wakeNear(func(i *v1alpha1.BackingImage) bool { return i.Spec.Clones(c.Spec.Image) })
}

// wake looks again at every copy of an image on this node's disks.
func (a *Agent) wake(imageUID string) {
	for uuid := range a.disks {
		a.loop.Enqueue(v1alpha1.CopyName(imageUID, uuid))
	}
}

// wakeAll looks again at every copy on this node's disks.
func (a *Agent) wakeAll() {
	for _, c := range a.store.Copies.List() {
		if a.disks[c.Spec.DiskUUID] != nil {
			a.loop.Enqueue(c.Name)
		}
	}
}

// enqueueFound looks at every copy that is on the disks, so that those which no object asks for are removed.
func (a *Agent) enqueueFound(ctx context.Context) {
	for uuid, d := range a.disks {
		published, err := d.ImageUIDs()
		if err != nil {
			klog.FromContext(ctx).Error(err, "Cannot list copies", "disk", uuid)
		}
		staged, err := d.StagedImageUIDs()
		if err != nil {
			klog.FromContext(ctx).Error(err, "Cannot list unfinished copies", "disk", uuid)
		}
		for _, uid := range append(published, staged...) {
			a.loop.Enqueue(v1alpha1.CopyName(uid, uuid))
		}
	}
}
