package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Images is the loop that gives every BackingImage its copies.
type Images struct {
	store   *store.Store
	options Options
	loop    *reconcile.Loop
}

// Options of an Images.
type Options struct {
	// Credentials keeps the secrets that go with their images; nil when there are none.
	Credentials credential.Store
}

// NewImages makes the loop; it starts nothing.
func NewImages(s *store.Store, o Options) *Images {
	c := &Images{store: s, options: o}
	c.loop = reconcile.New("images", c, reconcile.Options{})
	return c
}

// Run reconciles until ctx ends.
func (c *Images) Run(ctx context.Context) error {
	if err := c.store.Synced(ctx); err != nil {
		return err
	}
	defer c.store.Images.OnChange(func(i *v1alpha1.BackingImage) { c.loop.Enqueue(i.Name) })()
	defer c.store.Copies.OnChange(func(b *v1alpha1.BackingImageCopy) {
		c.loop.Enqueue(b.Spec.Image)
		c.wakeClones(b.Spec.Image)
	})()
	defer c.store.Volumes.OnChange(func(v *v1alpha1.Volume) {
		if v.Spec.Image != nil {
			c.loop.Enqueue(v.Spec.Image.Name)
		}
		c.wakeExports(v)
	})()
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

// Reconcile plans one image's copies, applies the plan and reports.
func (c *Images) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	image, ok := c.store.Images.Get(name)
	if !ok {
		return 0, c.sweep(ctx, name)
	}
	if image.DeletionTimestamp == nil && !slices.Contains(image.Finalizers, v1alpha1.ImageFinalizer) {
		_, err := c.store.Images.Modify(ctx, name, func(i *v1alpha1.BackingImage) {
			i.Finalizers = append(i.Finalizers, v1alpha1.ImageFinalizer)
		})
		return 0, backingimage.IgnoreNotFound(err) // the change brings us back
	}
	near, err := c.near(ctx, image)
	if err != nil {
		return 0, err
	}
	s := State{Image: image, Near: near, Copies: c.copies(name), Disks: c.store.Disks.List(), Nodes: c.store.Nodes.List(), Volumes: c.store.Volumes.List()}
	d := Plan(s)
	if err := c.apply(ctx, s, d); err != nil {
		return 0, err
	}
	if d.Done {
		return 0, c.release(ctx, image)
	}
	_, err = c.store.Images.ModifyStatus(ctx, name, func(i *v1alpha1.BackingImage) { summarize(s, d, &i.Status) })
	return 0, backingimage.IgnoreNotFound(err)
}

func (c *Images) copies(image string) []*v1alpha1.BackingImageCopy {
	var mine []*v1alpha1.BackingImageCopy
	for _, b := range c.store.Copies.List() {
		if b.Spec.Image == image {
			mine = append(mine, b)
		}
	}
	return mine
}

func (c *Images) apply(ctx context.Context, s State, d Decision) error {
	log := klog.FromContext(ctx)
	for _, name := range d.Delete {
		log.Info("Deleting copy", "copy", name)
		if err := c.store.Copies.Delete(ctx, name); err != nil {
			return err
		}
	}
	for _, spec := range d.Create {
		copy := &v1alpha1.BackingImageCopy{ObjectMeta: metav1.ObjectMeta{
			Name:            v1alpha1.CopyName(spec.ImageUID, spec.DiskUUID),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(s.Image, v1alpha1.GroupVersion.WithKind("BackingImage"))},
		}, Spec: spec}
		log.Info("Creating copy", "copy", copy.Name, "node", spec.NodeName, "origin", spec.Origin)
		if _, err := c.store.Copies.Create(ctx, copy); err != nil && !backingimage.Is(err, backingimage.Conflict) {
			return err
		}
	}
	if d.Origin == "" {
		return nil
	}
	log.Info("Naming the origin", "copy", d.Origin)
	_, err := c.store.Copies.Modify(ctx, d.Origin, func(b *v1alpha1.BackingImageCopy) { b.Spec.Origin = true })
	return backingimage.IgnoreNotFound(err)
}

// release lets a deleted image go, after the secret that was kept for it.
func (c *Images) release(ctx context.Context, image *v1alpha1.BackingImage) error {
	if c.options.Credentials != nil && credential.Kept(image) {
		if err := c.options.Credentials.Delete(ctx, credential.ImageRef(image.Name)); err != nil {
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
