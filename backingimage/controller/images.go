package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/event"
	"plinth.dev/plinth/backingimage/placement"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Images is the loop that gives every BackingImage its copies.
type Images struct {
	store    *store.Store
	options  Options
	loop     *reconcile.Loop
	ledger   placement.Ledger
	silences *silences
	reports  *reports
}

// Options of an Images.
type Options struct {
	// Credentials keeps the secrets that go with their images; nil when there are none.
	Credentials credential.Store
	// Namespace of those secrets; default credential.OwnNamespace.
	Namespace string
	Settings  Settings
	Recorder  event.Recorder // default event.Log
	Clock     clock.WithTicker
}

func (o Options) withDefaults() Options {
	o.Settings = o.Settings.WithDefaults()
	if o.Recorder == nil {
		o.Recorder = event.Log{}
	}
	if o.Namespace == "" {
		o.Namespace = credential.OwnNamespace
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	return o
}

// NewImages makes the loop; it starts nothing.
func NewImages(s *store.Store, o Options) *Images {
	o = o.withDefaults()
	c := &Images{store: s, options: o, silences: newSilences(), reports: newReports(o.Clock)}
	c.loop = reconcile.New("images", c, reconcile.Options{Clock: o.Clock})
	return c
}

// Run reconciles until ctx ends.
func (c *Images) Run(ctx context.Context) error {
	if err := c.store.Synced(ctx); err != nil {
		return err
	}
	defer c.store.Images.OnChange(func(i *v1alpha1.BackingImage) { c.loop.Enqueue(i.Name) })()
	defer c.store.Copies.OnChange(c.copyChanged)()
	defer c.store.Volumes.OnChange(c.volumeChanged)()
	defer c.store.Snapshots.OnChange(c.snapshotChanged)()
	all := newChanges(func() {
		for _, i := range c.store.Images.List() {
			c.loop.Enqueue(i.Name)
		}
	})
	defer c.store.Disks.OnChange(func(d *v1alpha1.Disk) {
		_, exists := c.store.Disks.Get(d.Name)
		all.disk(d, exists)
	})()
	defer c.store.Nodes.OnChange(func(n *v1alpha1.StorageNode) {
		_, exists := c.store.Nodes.Get(n.Name)
		all.node(n, exists)
	})()
	return c.loop.Run(ctx)
}

func (c *Images) copyChanged(b *v1alpha1.BackingImageCopy) {
	if _, exists := c.store.Copies.Get(b.Name); exists {
		c.ledger.Set("copy/"+b.Name, b.Spec.DiskUUID, placement.CopyBytes(b))
	} else {
		c.ledger.Drop("copy/" + b.Name)
		c.silences.forget(b.Name)
	}
	c.loop.Enqueue(b.Spec.Image)
	c.wakeClones(b.Spec.Image)
}

func (c *Images) volumeChanged(v *v1alpha1.Volume) {
	if _, exists := c.store.Volumes.Get(v.Name); exists {
		c.ledger.Set("volume/"+v.Name, v.Spec.DiskUUID, v.Spec.CapacityBytes)
	} else {
		c.ledger.Drop("volume/" + v.Name)
	}
	if v.Spec.Image != nil {
		c.loop.Enqueue(v.Spec.Image.Name)
	}
	c.wakeExports(v)
}

// snapshotChanged keeps account of the room that a snapshot takes.
func (c *Images) snapshotChanged(s *v1alpha1.Snapshot) {
	if _, exists := c.store.Snapshots.Get(s.Name); exists {
		c.ledger.Set("snapshot/"+s.Name, s.Spec.DiskUUID, placement.SnapshotBytes(s))
	} else {
		c.ledger.Drop("snapshot/" + s.Name)
	}
}

// Reconcile plans one image's copies, applies the plan and reports.
func (c *Images) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	image, ok := c.store.Images.Get(name)
	if !ok {
		c.reports.forget(name)
		return 0, c.sweep(ctx, name)
	}
	if image.DeletionTimestamp == nil && !slices.Contains(image.Finalizers, v1alpha1.ImageFinalizer) {
		_, err := c.store.Images.Modify(ctx, name, func(i *v1alpha1.BackingImage) {
			i.Finalizers = append(i.Finalizers, v1alpha1.ImageFinalizer)
		})
		return 0, backingimage.IgnoreNotFound(err) // the change brings us back
	}
	s, err := c.state(ctx, image)
	if err != nil {
		return 0, err
	}
	d := Plan(s)
	if err := c.apply(ctx, s, d); err != nil {
		return 0, err
	}
	if d.Done {
		return 0, c.release(ctx, image)
	}
	return c.report(ctx, s, d)
}

// state reads the caches.
func (c *Images) state(ctx context.Context, image *v1alpha1.BackingImage) (State, error) {
	near, err := c.near(ctx, image)
	return State{
		Image: image, Near: near, Copies: c.copies(image.Name), Disks: c.store.Disks.List(), Nodes: c.store.Nodes.List(),
		Volumes: c.store.Volumes.By(store.ByImage, image.Name), Promised: c.ledger.Promised(),
		Settings: c.options.Settings, Now: c.options.Clock.Now(),
	}, err
}

func (c *Images) copies(image string) []*v1alpha1.BackingImageCopy {
	return c.store.Copies.By(store.ByImage, image)
}

// release lets a deleted image go, after the secret that was kept for it.
func (c *Images) release(ctx context.Context, image *v1alpha1.BackingImage) error {
	if ref, kept := credential.Kept(image); kept && c.options.Credentials != nil && ref.Namespace == c.options.Namespace {
		if err := c.options.Credentials.Delete(ctx, ref); err != nil {
			return err
		}
	}
	_, err := c.store.Images.Modify(ctx, image.Name, func(i *v1alpha1.BackingImage) {
		i.Finalizers = slices.DeleteFunc(i.Finalizers, func(f string) bool { return f == v1alpha1.ImageFinalizer })
	})
	return backingimage.IgnoreNotFound(err)
}

// sweep removes the copies of an image that does not exist, whatever removed it.
func (c *Images) sweep(ctx context.Context, name string) error {
	for _, b := range c.copies(name) {
		if err := c.store.Copies.Delete(ctx, b.Name); err != nil {
			return fmt.Errorf("sweep copies of image %s: %w", name, err)
		}
	}
	return nil
}
