package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
)

// Drains is the loop that says of nodes which are cordoned or evicted whether any image would be lost with them: who drains a machine
// waits for its node's condition Drained.
type Drains struct {
	store   *store.Store
	options Options
	loop    *reconcile.Loop

	mu      sync.Mutex
	leaving map[string]bool // nodes
}

// NewDrains makes the loop; it starts nothing.
func NewDrains(s *store.Store, o Options) *Drains {
	d := &Drains{store: s, options: o.withDefaults(), leaving: map[string]bool{}}
	d.loop = reconcile.New("drains", d, reconcile.Options{Clock: d.options.Clock, Workers: 1})
	return d
}

// Run looks on until ctx ends.
func (d *Drains) Run(ctx context.Context) error {
	if err := d.store.Synced(ctx); err != nil {
		return err
	}
	defer d.store.Nodes.OnChange(d.nodeChanged)()
	defer d.store.Copies.OnChange(func(*v1alpha1.BackingImageCopy) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for name := range d.leaving {
			d.loop.Enqueue(name)
		}
	})()
	return d.loop.Run(ctx)
}

func (d *Drains) nodeChanged(n *v1alpha1.StorageNode) {
	_, exists := d.store.Nodes.Get(n.Name)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leaving[n.Name] = exists && leaves(n); !d.leaving[n.Name] {
		delete(d.leaving, n.Name)
	}
	d.loop.Enqueue(n.Name)
}

// leaves reports whether a node is to be emptied, or about to be away.
func leaves(n *v1alpha1.StorageNode) bool { return n.Status.Cordoned || n.Spec.EvictionRequested }

// Reconcile looks at one node.
func (d *Drains) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	n, ok := d.store.Nodes.Get(name)
	if !ok {
		return 0, nil
	}
	c := metav1.Condition{Type: v1alpha1.ConditionDrained, Status: metav1.ConditionTrue, Reason: "NothingOnlyHere", Message: "no image has its last ready copy here"}
	if last := d.lastHere(name); len(last) > 0 {
		c.Status, c.Reason = metav1.ConditionFalse, "LastCopies"
		c.Message = fmt.Sprintf("the last ready copies of images %s are here, and are being made elsewhere", strings.Join(last[:min(len(last), 10)], ", "))
	}
	_, err := d.store.Nodes.ModifyStatus(ctx, name, func(now *v1alpha1.StorageNode) {
		if !leaves(n) {
			meta.RemoveStatusCondition(&now.Status.Conditions, v1alpha1.ConditionDrained)
			return
		}
		meta.SetStatusCondition(&now.Status.Conditions, c)
	})
	return 0, backingimage.IgnoreNotFound(err)
}

// lastHere are the images of which no ready copy is on another node that stays.
func (d *Drains) lastHere(node string) []string {
	var last []string
	for _, disk := range d.store.Disks.List() {
		if disk.Spec.NodeName != node {
			continue
		}
		for _, c := range d.store.Copies.By(store.ByDisk, disk.Name) {
			if c.Status.State == v1alpha1.CopyReady && !slices.ContainsFunc(d.store.Copies.By(store.ByImage, c.Spec.Image), func(o *v1alpha1.BackingImageCopy) bool { return d.replaces(o, c) }) {
				last = append(last, c.Spec.Image)
			}
		}
	}
	slices.Sort(last)
	return slices.Compact(last)
}

// replaces reports whether a copy is a ready one of the same image on another node that stays.
func (d *Drains) replaces(o, c *v1alpha1.BackingImageCopy) bool {
	if o.Spec.ImageUID != c.Spec.ImageUID || o.Status.State != v1alpha1.CopyReady || o.DeletionTimestamp != nil || o.Spec.NodeName == c.Spec.NodeName {
		return false
	}
	n, known := d.store.Nodes.Get(o.Spec.NodeName)
	return known && !leaves(n) && meta.IsStatusConditionTrue(n.Status.Conditions, v1alpha1.ConditionReady)
}
