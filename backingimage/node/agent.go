// Package node is the agent of one machine: it registers the machine and its disks, keeps saying that they are there,
// and makes, adopts and removes the copies that BackingImageCopy objects ask of its disks. A fetch is a goroutine
// under the agent; what it has fetched is in the disk's staging directory, so that a killed agent goes on there.
//
// The object is the wish, the disk is the truth, the status is the report. A copy on disk without an object is removed;
// an object without a copy on disk gets one; an object that already has one is reported ready, whoever made it.
//
// Disks come and go while the agent runs: see keeper.
//
// Disks forget. Ready copies are read again from time to time (see scrubs), a chunk that differs from the manifest is marked beside the
// copy before anything else is done about it, and is written anew from the nearest who has it (see repair). While there is a mark
// nothing is made of the copy. A copy whose files are gone is made anew.
package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
)

// DefaultHeartbeat is how often an agent says that it runs, unless told otherwise.
const DefaultHeartbeat = 20 * time.Second

// Options of an Agent.
type Options struct {
	Version          string             // of this program, for StorageNode.status
	Source           source.Options     // what downloads may reach, and how; 4 connections by default
	Credentials      credential.Reader  // of images' secrets; nil when there are none
	Exporter         Exporter           // of this node's volumes; nil when there are none
	Openers          map[string]Opener  // of sources beside http and https, by scheme: they are large, so that not every program links them
	Restorer         Restorer           // of images from backups; nil where backups cannot be read
	Limits           format.Limits      // what an image may be
	Uploads          *transfer.Uploads  // what is uploaded to this node; nil when nothing can be
	Address          string             // host:port where peers and people reach this node's server; "" when there is none
	PublicKeyHash    string             // of that server
	Identity         *transfer.Identity // by which other agents know this one; nil when it gets nothing from them
	Shares           *fetch.Shares      // what is being received, for that server; may be nil
	MaxFetches       int                // fetches at once; default 5
	Disks            []string           // directories of the disks that flags name, beside those of spec.disks of the StorageNode
	PoolBytes        int64              // size of the pools made for them; see disk.Options
	PeerPatience     time.Duration      // see fetch.PeerJob.Patience
	PeerStall        time.Duration      // see fetch.PeerJob.Stall
	Heartbeat        time.Duration      // default 20 s
	DiskAnswer       time.Duration      // how long a disk may take to say how it is before it counts as hung; default 10 s
	TakeOverAfter    time.Duration      // how long a node must be silent before a disk of its may be taken over; default 3 heartbeats
	Peers            ChunkSource        // of images' chunks, for repairs; other nodes' agents by default, where there is an Identity
	ScrubInterval    time.Duration      // how often every ready copy is read again; default 168 h
	ScrubRate        int64              // how fast, in bytes per second, unless somebody asked for it; default 50 MB/s
	ProgressInterval time.Duration      // least time between two progress reports of a fetch; default 2 s
	RetryBase        time.Duration      // wait after the first failed fetch; doubles; default 1 min
	RetryMax         time.Duration      // default 5 min
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
		o.Heartbeat = DefaultHeartbeat
	}
	if o.TakeOverAfter == 0 {
		o.TakeOverAfter = 3 * max(o.Heartbeat, time.Second) // heartbeats are written in whole seconds
	}
	if o.DiskAnswer == 0 {
		o.DiskAnswer = 10 * time.Second
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
	disks   *disk.Set
	keeper  *keeper
	options Options
	loop    *reconcile.Loop
	fetches *fetches
	scrubs  *scrubs

	registered chan struct{} // closed when the node and its disks are
}

// New makes the agent of a node. It opens and closes disks in the set, and registers those that are in it already. It starts nothing.
func New(name string, s *store.Store, disks *disk.Set, o Options) *Agent {
	a := &Agent{name: name, store: s, disks: disks, options: o.withDefaults(), registered: make(chan struct{})}
	a.loop = reconcile.New("copies", a, reconcile.Options{Clock: a.options.Clock})
	a.fetches = newFetches(a.options.MaxFetches)
	a.scrubs = newScrubs()
	if a.options.Peers == nil && a.options.Identity != nil {
		a.options.Peers = a
	}
	a.keeper = newKeeper(name, s, disks, a.options, a.stopWork)
	return a
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
	if err := a.keeper.start(ctx); err != nil {
		return err
	}
	close(a.registered)
	defer a.disks.OnChange(func(uuid string) { a.lookAt(ctx, uuid) })()
	defer a.store.Copies.OnChange(a.copyChanged)()
	defer a.store.Images.OnChange(func(i *v1alpha1.BackingImage) {
		a.wake(string(i.UID))
		a.wakeNear(func(other *v1alpha1.BackingImage) bool { return other.Spec.Clones(i.Name) })
	})()
	defer a.store.Volumes.OnChange(func(v *v1alpha1.Volume) {
		a.wakeNear(func(i *v1alpha1.BackingImage) bool { return i.Spec.Exports(v) })
	})()
	for _, d := range a.disks.List() {
		a.lookAt(ctx, d.UUID())
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.loop.Run(ctx) })
	group.Go(func() error { return a.heartbeats(ctx) })
	group.Go(func() error { return a.scrubAll(ctx) })
	group.Go(func() error { return a.keeper.Run(ctx) })
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
	for _, d := range a.disks.List() {
		a.loop.Enqueue(v1alpha1.CopyName(imageUID, d.UUID()))
	}
}

// wakeAll looks again at every copy on this node's disks.
func (a *Agent) wakeAll() {
	for _, c := range a.store.Copies.List() {
		if _, mine := a.disks.Get(c.Spec.DiskUUID); mine {
			a.loop.Enqueue(c.Name)
		}
	}
}

// lookAt looks at every copy that is wished on a disk, and at every one that is on it, so that those which no object asks for
// are removed.
func (a *Agent) lookAt(ctx context.Context, uuid string) {
	for _, c := range a.store.Copies.List() {
		if c.Spec.DiskUUID == uuid {
			a.loop.Enqueue(c.Name)
		}
	}
	d, open := a.disks.Get(uuid)
	if !open || d.Usable() != nil {
		return
	}
	published, err := d.ImageUIDs()
	staged, serr := d.StagedImageUIDs()
	if err := errors.Join(err, serr); err != nil {
		klog.FromContext(ctx).Error(err, "Cannot list copies", "disk", uuid)
	}
	for _, uid := range append(published, staged...) {
		a.loop.Enqueue(v1alpha1.CopyName(uid, uuid))
	}
}

// stopWork ends the fetches to a disk and the verifications on it, and returns, if asked to wait, when they have ended.
func (a *Agent) stopWork(d *disk.Disk, wait bool) {
	for _, work := range []*fetches{a.fetches, a.scrubs.fetches} {
		for _, name := range work.names() {
			if _, uuid, _ := v1alpha1.ParseCopyName(name); uuid != d.UUID() {
				continue
			}
			if work.cancel(name); wait {
				work.stop(name)
			}
		}
	}
}
