package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner/engine"
)

// A volume for many readers (ReadOnlyMany) is an image, read on any number of nodes at once. It has no disk and no agent of its own: each node on which
// it is staged makes a clone of the image's copy there, attaches that read-only, and removes it when it is unstaged. So it is there in milliseconds
// where the image is, depends on no copy while it is read, and a node without a copy asks for one (StorageNode.status.waiting), for
// which the image's plan keeps room as for any volume that waits. The image stays while such a volume of it exists.

// checkReaders refuses a volume for many readers that would have nothing to read.
func checkReaders(_ context.Context, d *draft) error {
	switch {
	case !d.request.ReadOnlyMany:
	case d.source != nil || d.restore != nil:
		return backingimage.Errorf(backingimage.Invalid, "a volume for reading on many nodes (ReadOnlyMany) is made of a backing image, and not of a volume, a snapshot or a backup; make an image of that first")
	case d.parameters.Image == "":
		return backingimage.Errorf(backingimage.Invalid, "a volume for reading on many nodes (ReadOnlyMany) is made of a backing image, and the StorageClass names none: set %s", keyImage)
	}
	return nil
}

// Readers is the loop that says of volumes for many readers that they are ready: nobody has to make anything for that.
type Readers struct {
	store *store.Store
	loop  *reconcile.Loop
}

// NewReaders makes the loop; it starts nothing.
func NewReaders(s *store.Store) *Readers {
	r := &Readers{store: s}
	r.loop = reconcile.New("readers", r, reconcile.Options{})
	return r
}

// Run works until ctx ends.
func (r *Readers) Run(ctx context.Context) error {
	if err := r.store.Synced(ctx); err != nil {
		return err
	}
	defer r.store.Volumes.OnChange(func(v *v1alpha1.Volume) {
		if v.Spec.ReadOnlyMany {
			r.loop.Enqueue(v.Name)
		}
	})()
	return r.loop.Run(ctx)
}

// Reconcile looks at one volume.
func (r *Readers) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	v, ok := r.store.Volumes.Get(name)
	if !ok {
		return 0, nil
	}
	_, err := r.store.Volumes.ModifyStatus(ctx, name, func(now *v1alpha1.Volume) {
		now.Status.State, now.Status.CapacityBytes, now.Status.ObservedGeneration = v1alpha1.VolumeReady, v.Spec.CapacityBytes, v.Generation
	})
	return 0, backingimage.IgnoreNotFound(err)
}

// strayReaders is the name under which the volume loop looks for clones that nobody will unstage. No volume has it.
const strayReaders = "*"

// sweepReaders removes the clones of volumes for many readers that were deleted while this node was away.
func (l *VolumeLoop) sweepReaders(ctx context.Context) error {
	for _, d := range l.engines.disks.List() {
		e, open := l.engines.of(d.UUID())
		if !open || l.engines.usable(d.UUID()) != nil {
			continue
		}
		all, err := e.List(ctx)
		if err != nil {
			return err
		}
		for _, info := range all {
			if err := l.removeStray(ctx, e, info.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeStray removes a clone for reading whose volume is gone. One that somebody still reads stays.
func (l *VolumeLoop) removeStray(ctx context.Context, e engine.Engine, id string) error {
	volume, is := disk.ReaderOf(id)
	if !is {
		return nil
	}
	_, err := l.store.Volumes.Live(ctx, volume)
	if !backingimage.Is(err, backingimage.NotFound) {
		return err
	}
	if err = e.Delete(ctx, id); backingimage.Is(err, backingimage.InUse) {
		return nil
	}
	return err
}

// attachReader makes a volume for many readers a block device here, once the image has a copy on one of this node's disks.
func (a *Attacher) attachReader(ctx context.Context, v *v1alpha1.Volume) (Attached, error) {
	info, uuid, err := a.statReader(ctx, v.Name)
	if backingimage.Is(err, backingimage.NotFound) {
		began := a.clock.Now()
		if uuid, err = a.copyHere(ctx, v); err != nil {
			return Attached{}, err
		}
		a.waited(a.clock.Since(began).Seconds())
	}
	if err != nil {
		return Attached{}, err
	}
	defer a.engines.lock(v.Name)()
	e, open := a.engines.of(uuid)
	if !open {
		return Attached{}, backingimage.Errorf(backingimage.NotReady, "volume %s: disk %s went away; try again", v.Name, uuid)
	}
	clone := engine.Volume{ID: disk.ReaderID(v.Name), Bytes: v.Spec.CapacityBytes, Name: v.Spec.Name}
	if info.ID == "" {
		if err := e.Clone(ctx, clone, engine.From{Image: v.Spec.Image.UID}); err != nil {
			if backingimage.Is(err, backingimage.NotFound) {
				err = backingimage.Errorf(backingimage.NotReady, "the copy of backing image %s on this node is gone, and is made anew: %w", v.Spec.Image.Name, err)
			}
			return Attached{}, fmt.Errorf("attach volume %s: %w", v.Name, err)
		}
	}
	device, err := e.Attach(ctx, clone.ID, engine.AttachOptions{ReadOnly: true, Partitions: v.Spec.Partition > 0})
	if err != nil {
		return Attached{}, fmt.Errorf("attach volume %s: %w", v.Name, err)
	}
	klog.FromContext(ctx).Info("Attached volume for reading", "volume", v.Name, "device", device)
	return attached(v, device), a.askFor(ctx, v, "")
}

// statReader finds the clone from which a volume is read here, and its disk. NotFound.
func (a *Attacher) statReader(ctx context.Context, volume string) (info engine.Info, uuid string, err error) {
	for _, d := range a.engines.disks.List() {
		e, open := a.engines.of(d.UUID())
		if !open {
			continue
		}
		if info, err = e.Stat(ctx, disk.ReaderID(volume)); !backingimage.Is(err, backingimage.NotFound) {
			return info, d.UUID(), err
		}
	}
	return engine.Info{}, "", backingimage.Errorf(backingimage.NotFound, "volume %s is not read on node %s", volume, a.name)
}

// copyHere waits until the volume's image has a ready copy on a disk of this node, which it asks for if need be, and returns the disk.
func (a *Attacher) copyHere(ctx context.Context, v *v1alpha1.Volume) (uuid string, err error) {
	image := v.Spec.Image
	uuid, ready, err := a.bestDisk(v)
	if err != nil || ready {
		return uuid, err
	}
	if err := a.askFor(ctx, v, uuid); err != nil {
		return "", err
	}
	var latest *v1alpha1.BackingImageCopy
	err = a.store.Copies.Wait(ctx, v1alpha1.CopyName(image.UID, uuid), func(c *v1alpha1.BackingImageCopy) (bool, error) {
		if c == nil {
			return false, nil
		}
		if latest = c; c.Final() {
			return false, backingimage.Errorf(backingimage.Precondition, "volume %s: %s; delete the image and create it anew with that mended", v.Name, Progress(c))
		}
		return c.Status.State == v1alpha1.CopyReady, nil
	})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		progress := "waits for the image's controller"
		if latest != nil {
			ctx, cancel := toTell(ctx)
			defer cancel()
			progress = awaited(ctx, a.store, latest)
		}
		err = backingimage.Errorf(backingimage.NotReady, "volume %s is not ready on node %s yet: %s", v.Name, a.name, progress)
	}
	return uuid, err
}

// bestDisk is the disk of this node from which a volume is to be read: one with a ready copy of its image, else with one that is coming, else the
// one with the most room.
func (a *Attacher) bestDisk(v *v1alpha1.Volume) (uuid string, ready bool, err error) {
	type choice struct {
		uuid string
		rank int
		free int64
	}
	var choices []choice
	for _, d := range a.engines.disks.List() {
		object, registered := a.store.Disks.Get(d.UUID())
		if !registered || a.engines.usable(d.UUID()) != nil {
			continue
		}
		rank := 2
		if c, here := a.store.Copies.Get(v1alpha1.CopyName(v.Spec.Image.UID, d.UUID())); here && c.Status.State == v1alpha1.CopyReady {
			rank = 0
		} else if here {
			rank = 1
		}
		choices = append(choices, choice{d.UUID(), rank, object.Status.AvailableBytes})
	}
	if len(choices) == 0 {
		return "", false, backingimage.Errorf(backingimage.NotReady, "volume %s cannot be read on node %s: no disk there can be used; see plinth disk ls", v.Name, a.name)
	}
	best := slices.MinFunc(choices, func(x, y choice) int {
		return cmp.Or(cmp.Compare(x.rank, y.rank), cmp.Compare(y.free, x.free), cmp.Compare(x.uuid, y.uuid))
	})
	return best.uuid, best.rank == 0, nil
}

// askFor writes at this node that a volume waits for its image's copy on a disk; "" takes that back.
func (a *Attacher) askFor(ctx context.Context, v *v1alpha1.Volume, uuid string) error {
	return a.setWaiting(ctx, v.Name, func(list []v1alpha1.WaitingReader) []v1alpha1.WaitingReader {
		if uuid == "" {
			return list
		}
		return append(list, v1alpha1.WaitingReader{Volume: v.Name, ImageUID: v.Spec.Image.UID, DiskUUID: uuid})
	})
}

// setWaiting changes the list of what waits here, from which the volume is taken first.
func (a *Attacher) setWaiting(ctx context.Context, volume string, change func([]v1alpha1.WaitingReader) []v1alpha1.WaitingReader) error {
	_, err := a.store.Nodes.ModifyStatus(ctx, a.name, func(n *v1alpha1.StorageNode) {
		n.Status.Waiting = change(slices.DeleteFunc(slices.Clone(n.Status.Waiting), func(w v1alpha1.WaitingReader) bool { return w.Volume == volume }))
	})
	return err
}

// detachReader removes the clone from which a volume was read here, if there is one, and no longer asks for a copy.
func (a *Attacher) detachReader(ctx context.Context, volume string) error {
	for _, d := range a.engines.disks.List() {
		e, open := a.engines.of(d.UUID())
		if !open || a.engines.usable(d.UUID()) != nil {
			continue
		}
		if err := e.Delete(ctx, disk.ReaderID(volume)); err != nil {
			return fmt.Errorf("detach volume %s from disk %s: %w", volume, d.UUID(), err)
		}
	}
	return backingimage.IgnoreNotFound(a.setWaiting(ctx, volume, func(list []v1alpha1.WaitingReader) []v1alpha1.WaitingReader { return list }))
}
