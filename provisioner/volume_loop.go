package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/reconcile"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/provisioner/engine"
)

// VolumeLoop makes on a node's disks the volumes that the Volume objects describe: it clones or creates when what they
// start from is there, grows, deletes, and reports what it found. It never deletes a volume that has no object.
type VolumeLoop struct {
	store   *store.Store
	engines *Engines
	loop    *reconcile.Loop

	sources  VolumeSources
	clock    clock.WithTicker
	restores *restores
	receipts *receipts
	running  context.Context // of Run: a restore outlives the call that began it
}

// VolumeSources is where the content of volumes comes from that is not on their disk. What is not given, nothing comes from.
type VolumeSources struct {
	Offers       *Offers            // this node's snapshots, for its other disks
	Identity     *transfer.Identity // by which other nodes give theirs
	Repositories *Repositories      // of backups
}

// NewVolumeLoop makes the loop; it starts nothing.
func NewVolumeLoop(s *store.Store, engines *Engines, from VolumeSources) *VolumeLoop {
	l := &VolumeLoop{store: s, engines: engines, sources: from, clock: clock.RealClock{}, restores: newRestores()}
	l.loop = reconcile.New("volumes", l, reconcile.Options{})
	l.receipts = newReceipts(s, engines, from, l.loop.Enqueue)
	return l
}

// Run reconciles until ctx ends. Every volume of the node is looked at once at the start, so that what a crash or a
// reboot left is adopted.
func (l *VolumeLoop) Run(ctx context.Context) error {
	if err := l.store.Synced(ctx); err != nil {
		return err
	}
	l.running = ctx
	defer l.restores.stopAll()
	defer l.store.Volumes.OnChange(func(v *v1alpha1.Volume) { l.loop.Enqueue(v.Name) })()
	defer l.store.Copies.OnChange(func(c *v1alpha1.BackingImageCopy) { l.wake(c.Spec.ImageUID, c.Spec.DiskUUID) })()
	defer l.store.Images.OnChange(func(i *v1alpha1.BackingImage) { l.wake(string(i.UID), "") })()
	defer l.engines.disks.OnChange(func(uuid string) { l.sweep(ctx, uuid); l.wakeDisk(uuid) })()
	for _, d := range l.engines.disks.List() {
		l.sweep(ctx, d.UUID())
		l.wakeDisk(d.UUID())
	}
	l.loop.Enqueue(strayReaders)
	err := l.loop.Run(ctx)
	l.receipts.stopAll()
	return err
}

// sweep removes what has come to a disk for volumes that are made, or do not exist any more.
func (l *VolumeLoop) sweep(ctx context.Context, uuid string) {
	d, err := l.engines.disks.Use(uuid)
	e, mine := l.engines.of(uuid)
	if err != nil || !mine {
		return
	}
	ids, err := d.ReceiptIDs()
	for _, id := range ids {
		_, exists := l.store.Volumes.Get(id)
		if _, unmade := e.Stat(ctx, id); !exists || unmade == nil {
			err = errors.Join(err, l.receipts.drop(id, d))
		}
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Cannot remove what was received for volumes that do not exist", "disk", uuid)
	}
}

// wakeDisk enqueues the volumes of a disk, those included of which there is only what a restore left, and a look for clones that nobody reads.
func (l *VolumeLoop) wakeDisk(uuid string) {
	l.loop.Enqueue(strayReaders)
	if d, open := l.engines.disks.Get(uuid); open {
		begun, _ := d.StagedFillIDs() // what cannot be listed now is when the disk is well again
		for _, id := range begun {
			l.loop.Enqueue(id)
		}
	}
	for _, v := range l.store.Volumes.List() {
		if v.Spec.DiskUUID == uuid {
			l.loop.Enqueue(v.Name)
		}
	}
}

// wake enqueues the volumes that wait for an image on a disk ("": on any).
func (l *VolumeLoop) wake(imageUID, disk string) {
	for _, v := range l.store.Volumes.List() {
		if v.Waits() && v.Spec.Image.UID == imageUID && (disk == "" || v.Spec.DiskUUID == disk) {
			l.loop.Enqueue(v.Name)
		}
	}
}

// Reconcile brings one volume about.
func (l *VolumeLoop) Reconcile(ctx context.Context, name string) (time.Duration, error) {
	if name == strayReaders {
		return 0, l.sweepReaders(ctx)
	}
	v, ok := l.store.Volumes.Get(name)
	if !ok {
		return 0, l.forget(ctx, name)
	}
	e, mine := l.engines.of(v.Spec.DiskUUID)
	if !mine {
		l.receipts.stop(name)
		return 0, nil
	}
	if err := l.engines.usable(v.Spec.DiskUUID); err != nil {
		l.receipts.stop(name)
		return 0, l.diskTroubled(ctx, v, err)
	}
	if v.DeletionTimestamp != nil {
		return l.remove(ctx, e, v)
	}
	info, err := e.Stat(ctx, name)
	if backingimage.Is(err, backingimage.NotFound) {
		// The API server is asked, not the cache: a volume that was ready must not be made anew, and the cache may not
		// know yet that it was.
		if v, err = l.store.Volumes.Live(ctx, name); err != nil || v.DeletionTimestamp != nil {
			return 0, backingimage.IgnoreNotFound(err)
		}
		if err = l.make(ctx, e, v); err == nil {
			info, err = e.Stat(ctx, name)
		}
	}
	if err == nil {
		l.restores.forget(name)
	}
	if err == nil && info.Bytes < v.Spec.CapacityBytes {
		err = e.Resize(ctx, name, v.Spec.CapacityBytes)
	}
	again, rerr := l.report(ctx, e, v, err)
	if v.Spec.SourceDisk != "" && backingimage.Is(err, backingimage.NotReady) && rerr == nil {
		again = receiptTick // what it waits for is on another node
	}
	return again, rerr
}

// forget removes what a restore left of a volume whose object is gone without its agent.
func (l *VolumeLoop) forget(ctx context.Context, name string) error {
	l.restores.stop(name)
	for _, d := range l.engines.disks.List() {
		begun, err := d.StagedFillIDs()
		if err != nil || !slices.Contains(begun, name) {
			continue
		}
		if _, err := l.store.Volumes.Live(ctx, name); !backingimage.Is(err, backingimage.NotFound) {
			return err // the cache is behind
		}
		klog.FromContext(ctx).Info("Removing what was restored of a volume that is gone", "volume", name, "disk", d.UUID())
		if err := d.RemoveStagedFill(name); err != nil {
			return err
		}
	}
	return nil
}

// diskTroubled says at a volume what is wrong with its disk; the disk's recovery brings us back. What the volume was, it stays.
func (l *VolumeLoop) diskTroubled(ctx context.Context, v *v1alpha1.Volume, trouble error) error {
	_, err := l.store.Volumes.ModifyStatus(ctx, v.Name, func(now *v1alpha1.Volume) {
		if now.Status.State == "" {
			now.Status.State = v1alpha1.VolumePending
		}
		now.Status.Reason, now.Status.Message = backingimage.KindOf(trouble).String(), trouble.Error()
	})
	return backingimage.IgnoreNotFound(err)
}

// make creates the volume's file from what it starts from.
func (l *VolumeLoop) make(ctx context.Context, e engine.Engine, v *v1alpha1.Volume) error {
	if v.Spec.Restore != nil && v.Status.State == v1alpha1.VolumeFailed && v.Status.Reason == backingimage.Corrupt.String() {
		return backingimage.Errorf(backingimage.Corrupt, "%s", v.Status.Message) // the backup is, and stays so
	}
	if v.Status.State == v1alpha1.VolumeReady || v.Status.Reason == backingimage.Corrupt.String() {
		if err := l.engines.healthy(v.Spec.DiskUUID); err != nil {
			return err
		}
		return backingimage.Errorf(backingimage.Corrupt, "its file is gone from disk %s; put the disk's data back, or delete the volume and restore it from elsewhere", v.Spec.DiskUUID)
	}
	volume := engine.Volume{ID: v.Name, Bytes: v.Spec.CapacityBytes, Name: v.Spec.Name}
	log := klog.FromContext(ctx)
	switch {
	case v.Spec.SourceDisk != "":
		return l.receive(ctx, e, v, volume)
	case v.Spec.Restore != nil:
		return l.restore(ctx, e, volume, v)
	case v.Spec.SourceVolume != "" || v.Spec.SourceSnapshot != "":
		log.Info("Cloning", "volume", v.Name, "source", SourceOf(v))
		return e.Clone(ctx, volume, engine.From{Volume: v.Spec.SourceVolume, Snapshot: v.Spec.SourceSnapshot})
	case v.Spec.Image != nil:
		if err := l.imageReady(ctx, v); err != nil {
			return err
		}
		log.Info("Cloning backing image", "volume", v.Name, "backingImage", v.Spec.Image.Name)
		err := e.Clone(ctx, volume, engine.From{Image: v.Spec.Image.UID})
		if backingimage.Is(err, backingimage.NotFound) { // the agent makes it anew
			return backingimage.Errorf(backingimage.NotReady, "the copy of backing image %s on this disk is gone, and is made anew: %w", v.Spec.Image.Name, err)
		}
		return err
	}
	log.Info("Creating empty volume", "volume", v.Name)
	return e.Create(ctx, volume)
}

// receive creates the volume's file of a snapshot that is on another disk, once all of that is here.
func (l *VolumeLoop) receive(ctx context.Context, e engine.Engine, v *v1alpha1.Volume, volume engine.Volume) error {
	s, err := l.point(ctx, v)
	if err != nil {
		return err
	}
	d, err := l.engines.disks.Use(v.Spec.DiskUUID)
	if err != nil {
		return err
	}
	path, err := l.receipts.receive(context.WithoutCancel(ctx), v.Name, d, s)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Making volume of a snapshot that was received", "volume", v.Name, "snapshot", s.Name)
	if err := e.Import(ctx, volume, engine.From{Snapshot: s.Name}, path); err != nil {
		return err
	}
	return l.receipts.drop(v.Name, d)
}

// point is the snapshot that a volume is to be made of, which may be on any node. NotReady while it is not taken.
func (l *VolumeLoop) point(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Snapshot, error) {
	name := v.Spec.SourceSnapshot
	if name == "" {
		name = v1alpha1.ClonePoint(v.Name)
	}
	s, err := l.store.Snapshots.Live(ctx, name)
	switch {
	case backingimage.Is(err, backingimage.NotFound) && v.Spec.SourceSnapshot != "":
		return nil, backingimage.Errorf(backingimage.Precondition, "snapshot %s was deleted before the volume was made of it; delete the volume", name)
	case backingimage.Is(err, backingimage.NotFound):
		if _, err := l.store.Volumes.Live(ctx, v.Spec.SourceVolume); backingimage.Is(err, backingimage.NotFound) {
			return nil, backingimage.Errorf(backingimage.Precondition, "volume %s was deleted before its content was taken; delete this volume", v.Spec.SourceVolume)
		}
		return nil, backingimage.Errorf(backingimage.NotReady, "waits for a point in time of volume %s", v.Spec.SourceVolume)
	case err != nil:
		return nil, err
	}
	if err := snapshotFailure(s); err != nil {
		return nil, err
	}
	if s.Status.State != v1alpha1.SnapshotReady {
		return nil, backingimage.Errorf(backingimage.NotReady, "waits for snapshot %s on node %s: %s", s.Name, s.Spec.NodeName, snapshotMessage(s))
	}
	return s, nil
}

// imageReady is nil when the image has a ready copy on the volume's disk, NotReady while that can still come about.
func (l *VolumeLoop) imageReady(ctx context.Context, v *v1alpha1.Volume) error {
	c, ok := l.store.Copies.Get(v1alpha1.CopyName(v.Spec.Image.UID, v.Spec.DiskUUID))
	switch {
	case ok && c.Status.State == v1alpha1.CopyReady:
		return nil
	case ok && c.Final():
		return backingimage.Errorf(backingimage.Precondition, "backing image %s failed: %s; delete the volume and the image, and create them anew with that mended", v.Spec.Image.Name, c.Status.Message)
	case ok:
		return backingimage.Errorf(backingimage.NotReady, "waits for backing image %s on this disk", v.Spec.Image.Name)
	}
	image, err := l.store.Images.Live(ctx, v.Spec.Image.Name)
	if backingimage.Is(err, backingimage.NotFound) || err == nil && string(image.UID) != v.Spec.Image.UID {
		return backingimage.Errorf(backingimage.Precondition, "backing image %s was deleted before the volume was cloned; delete the volume", v.Spec.Image.Name)
	}
	if err != nil {
		return err
	}
	return backingimage.Errorf(backingimage.NotReady, "waits for backing image %s to be placed on this disk", v.Spec.Image.Name)
}

// remove deletes the volume's file, then lets the object go.
func (l *VolumeLoop) remove(ctx context.Context, e engine.Engine, v *v1alpha1.Volume) (time.Duration, error) {
	if !slices.Contains(v.Finalizers, v1alpha1.VolumeFinalizer) {
		return 0, nil
	}
	if d, open := l.engines.disks.Get(v.Spec.DiskUUID); open && v.Spec.SourceDisk != "" {
		if err := l.receipts.drop(v.Name, d); err != nil {
			return 0, err
		}
	}
	l.restores.stop(v.Name)
	if err := e.Delete(ctx, v.Name); err != nil {
		_, rerr := l.store.Volumes.ModifyStatus(ctx, v.Name, func(now *v1alpha1.Volume) {
			now.Status.Reason, now.Status.Message = backingimage.KindOf(err).String(), "is being deleted: "+err.Error()
		})
		if backingimage.Is(err, backingimage.InUse) {
			return inUseRetry, rerr
		}
		return 0, fmt.Errorf("delete volume's file: %w", err)
	}
	klog.FromContext(ctx).Info("Deleted volume", "volume", v.Name)
	_, err := l.store.Volumes.Modify(ctx, v.Name, func(now *v1alpha1.Volume) {
		now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == v1alpha1.VolumeFinalizer })
	})
	return 0, backingimage.IgnoreNotFound(err)
}

// inUseRetry is how often a volume that is to be deleted and still held open is tried again.
const inUseRetry = 5 * time.Second

// report writes what is found now, or what went wrong. Waiting is not an error: the copy's change brings us back.
func (l *VolumeLoop) report(ctx context.Context, e engine.Engine, v *v1alpha1.Volume, err error) (time.Duration, error) {
	defer l.engines.lock(v.Name)()
	var info engine.Info
	if err == nil {
		if info, err = e.Stat(ctx, v.Name); backingimage.Is(err, backingimage.NotFound) {
			return 0, backingimage.Errorf(backingimage.NotReady, "volume %s vanished while it was looked at", v.Name) // make says what that means
		}
	}
	_, werr := l.store.Volumes.ModifyStatus(ctx, v.Name, func(now *v1alpha1.Volume) {
		s := &now.Status
		s.ObservedGeneration = v.Generation
		switch {
		case err == nil:
			s.State, s.Reason, s.Message = v1alpha1.VolumeReady, "", ""
			s.CapacityBytes, s.Device = info.Bytes, info.Device
		case backingimage.Terminal(err):
			s.State, s.Reason, s.Message = v1alpha1.VolumeFailed, backingimage.KindOf(err).String(), err.Error()
		default:
			if s.State != v1alpha1.VolumeReady {
				s.State = v1alpha1.VolumePending
			}
			s.Reason, s.Message = backingimage.KindOf(err).String(), err.Error()
		}
	})
	switch {
	case werr != nil:
		return 0, backingimage.IgnoreNotFound(werr)
	case err == nil || backingimage.Terminal(err) || backingimage.Is(err, backingimage.NotReady):
		return 0, nil
	}
	return 0, err
}
