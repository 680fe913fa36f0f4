package provisioner

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/placement"
	"plinth.dev/plinth/backingimage/store"
)

// DefaultBytes is the size of an empty volume when nobody asks for one: 1 GiB.
const DefaultBytes = 1 << 30

// blockBytes is what sizes are rounded up to: a sector of either size that a device can have.
const blockBytes = 4096

// Options of a Provisioner.
type Options struct {
	// OverProvisioningPercent of a disk's capacity may be promised to volumes, snapshots and images; default 200.
	OverProvisioningPercent int64
	// MinimalAvailablePercent of a disk's capacity must stay free for it to get new volumes; default 10.
	MinimalAvailablePercent int64
	// SizeWait bounds how long Create waits for an image's virtual size to become known; default 10 s.
	SizeWait time.Duration
	// AgentWait bounds how long Create of a clone, Delete and Expand wait for the agent when the caller sets no deadline; default 1 min.
	AgentWait time.Duration
	// Claims for which volumes are asked; nil where the orchestrator has none that can be read.
	Claims Claims
	// Credentials keeps the provisioner secrets of images that are made on demand; nil when they cannot be kept.
	Credentials credential.Store
	// Namespace in which they are kept; default credential.OwnNamespace.
	Namespace string
	// Repositories are where backups are; nil when this controller cannot read them.
	Repositories *Repositories
}

func (o Options) withDefaults() Options {
	if o.OverProvisioningPercent == 0 {
		o.OverProvisioningPercent = 200
	}
	if o.MinimalAvailablePercent == 0 {
		o.MinimalAvailablePercent = 10
	}
	if o.SizeWait == 0 {
		o.SizeWait = 10 * time.Second
	}
	if o.Namespace == "" {
		o.Namespace = credential.OwnNamespace
	}
	if o.AgentWait == 0 {
		o.AgentWait = time.Minute
	}
	return o
}

func (o Options) limits() placement.Limits {
	return placement.Limits{OverProvisioningPercent: o.OverProvisioningPercent, MinimalAvailablePercent: o.MinimalAvailablePercent}
}

// Provisioner decides about volumes and writes them. Wrap it in Idempotent.
type Provisioner struct {
	store   *store.Store
	options Options
}

var _ Controller = (*Provisioner)(nil)

// New makes a Provisioner over a store whose caches hold every node's objects.
func New(s *store.Store, o Options) *Provisioner {
	return &Provisioner{store: s, options: o.withDefaults()}
}

// Create implements Controller. It does not look for an existing volume first; Idempotent does.
func (p *Provisioner) Create(ctx context.Context, r CreateRequest) (*v1alpha1.Volume, error) {
	if r.Name == "" {
		return nil, backingimage.Errorf(backingimage.Invalid, "name: a volume needs one")
	}
	parameters, err := ParseParameters(r.Parameters)
	if err != nil {
		return nil, err
	}
	if len(parameters.Ignored) > 0 {
		klog.FromContext(ctx).Info("These parameters of the StorageClass mean nothing here and are ignored", "volume", r.Name, "parameters", parameters.Ignored)
	}
	d := &draft{request: r, parameters: parameters}
	for _, hook := range p.hooks() {
		if err := hook(ctx, d); err != nil {
			return nil, err
		}
	}
	volume, err := p.store.Volumes.Create(ctx, d.volume())
	if err != nil {
		return nil, err
	}
	return p.Released(ctx, volume)
}

// volume is the object that a finished draft stands for.
func (d *draft) volume() *v1alpha1.Volume {
	v := &v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{Name: VolumeID(d.request.Name)},
		Spec: v1alpha1.VolumeSpec{
			Name: d.request.Name, CapacityBytes: d.bytes, ReadOnlyMany: d.request.ReadOnlyMany,
			SourceVolume: d.request.SourceVolume, SourceHandle: d.request.SourceHandle, Claim: d.claim, Parameters: classParameters(d.request.Parameters),
			Partition: d.parameters.Partition, MkfsParams: d.parameters.MkfsParams,
		},
	}
	if d.disk != nil {
		v.Spec.DiskUUID, v.Spec.NodeName, v.Finalizers = d.disk.Name, d.disk.Spec.NodeName, []string{v1alpha1.VolumeFinalizer}
	}
	switch {
	case d.source != nil:
		v.Spec.SourceSnapshot = d.source.snapshot
		if d.disk != nil && d.source.disk != d.disk.Name {
			v.Spec.SourceDisk = d.source.disk
		}
		v.Spec.Image = d.source.image.DeepCopy() // what its content began as, which does not change by cloning
	case d.image != nil:
		v.Spec.Image = &v1alpha1.VolumeImage{Name: d.image.Name, UID: string(d.image.UID)}
	}
	d.restored(v)
	return v
}

// restored gives a volume what its backup says of it, as far as the class says nothing else.
func (d *draft) restored(v *v1alpha1.Volume) {
	if d.restore == nil {
		return
	}
	v.Spec.Restore = &v1alpha1.VolumeRestore{Target: d.restore.target.Name, Backup: d.restore.manifest.ID}
	if was := d.restore.manifest.Volume; was != nil {
		v.Labels = was.Labels
		v.Spec.Partition = cmp.Or(v.Spec.Partition, was.Partition)
		v.Spec.MkfsParams = cmp.Or(v.Spec.MkfsParams, was.MkfsParams)
	}
}

// classParameters are the parameters without what the sidecar adds about the claim.
func classParameters(raw map[string]string) map[string]string {
	class := maps.Clone(raw)
	for _, key := range metadataKeys {
		delete(class, key)
	}
	return class
}

// Released implements Controller. On one disk that is when the volume is made, which takes no time. A volume that is made of another on
// another disk needs its point in time only; one that is made of a snapshot keeps that from being deleted.
func (p *Provisioner) Released(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Volume, error) {
	switch {
	case SourceOf(v) == "" || v.Status.State == v1alpha1.VolumeReady:
		return v, nil
	case v.Spec.SourceDisk == "":
		made, err := p.made(ctx, v)
		return made, waited(err, "volume %s: cloning %s on node %s is not done yet: %s", v.Name, SourceOf(v), v.Spec.NodeName, made.Status.Message)
	case v.Spec.SourceVolume != "":
		return p.pointed(ctx, v)
	}
	return v, nil
}

// pointed waits until the point in time is taken of which a volume is made.
func (p *Provisioner) pointed(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	says := "nobody has begun"
	err := p.store.Snapshots.Wait(ctx, v1alpha1.ClonePoint(v.Name), func(s *v1alpha1.Snapshot) (bool, error) {
		now, known := p.store.Volumes.Get(v.Name)
		switch {
		case known && now.Status.State == v1alpha1.VolumeFailed:
			return false, failure(now)
		case known && now.Status.State == v1alpha1.VolumeReady:
			return true, nil // and the point is gone
		case s == nil:
			return false, nil
		}
		says = snapshotMessage(s)
		return s.Status.State == v1alpha1.SnapshotReady, snapshotFailure(s)
	})
	return v, waited(err, "volume %s: the point in time of %s, of which it is made, is not taken yet: %s%s", v.Name, SourceOf(v), says, diskTrouble(p.store, v.Spec.SourceDisk))
}

// SourceOf says what a volume is made from, "" when that is an image or nothing.
func SourceOf(v *v1alpha1.Volume) string {
	switch {
	case v.Spec.SourceVolume != "":
		return "volume " + v.Spec.SourceVolume
	case v.Spec.SourceSnapshot != "":
		return "snapshot " + v.Spec.SourceSnapshot
	}
	return ""
}

// made waits until a volume is ready and returns the latest of it, also beside an error.
func (p *Provisioner) made(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err := p.store.Volumes.Wait(ctx, v.Name, func(now *v1alpha1.Volume) (bool, error) {
		if now == nil {
			return false, nil
		}
		v = now
		if now.Status.State == v1alpha1.VolumeFailed {
			return false, failure(now)
		}
		return now.Status.State == v1alpha1.VolumeReady, nil
	})
	return v, err
}

// settled waits until a volume is made that something is to be made of.
func (p *Provisioner) settled(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Volume, error) {
	if v.DeletionTimestamp != nil {
		return v, backingimage.Errorf(backingimage.Precondition, "volume %s is being deleted; nothing can be made of it any more", v.Name)
	}
	if v.Spec.ReadOnlyMany {
		return v, backingimage.Errorf(backingimage.Precondition, "volume %s is for reading on many nodes and has no data of its own; make what you need of its image, %s", v.Name, v.Spec.Image.Name)
	}
	if v.Status.State == v1alpha1.VolumeReady {
		return v, nil
	}
	v, err := p.made(ctx, v)
	return v, waited(err, "volume %s is not ready yet, so that nothing can be made of it: %s", v.Name, v.Status.Message)
}

// waited turns the end of a wait's time into NotReady with what it was waiting for.
func waited(err error, format string, args ...any) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return backingimage.Errorf(backingimage.NotReady, format, args...)
	}
	return err
}

// Delete implements Controller.
func (p *Provisioner) Delete(ctx context.Context, id string) error {
	v, err := p.store.Volumes.Live(ctx, id)
	if backingimage.Is(err, backingimage.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if v.Status.Device != "" && v.DeletionTimestamp == nil {
		return backingimage.Errorf(backingimage.InUse, "volume %s is attached on node %s as %s; unpublish and unstage it first", id, v.Spec.NodeName, v.Status.Device)
	}
	if err := p.store.Volumes.Delete(ctx, id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err = p.store.Volumes.Wait(ctx, id, func(now *v1alpha1.Volume) (bool, error) {
		if now != nil {
			v = now
		}
		return now == nil, nil
	})
	return waited(err, "volume %s: waiting for the agent on node %s to remove it: %s%s", id, v.Spec.NodeName, v.Status.Message, diskTrouble(p.store, v.Spec.DiskUUID))
}

// Expand implements Controller.
func (p *Provisioner) Expand(ctx context.Context, id string, requiredBytes, limitBytes int64) (int64, error) {
	v, err := p.store.Volumes.Live(ctx, id)
	if err != nil {
		return 0, err
	}
	want := max(roundUp(requiredBytes), v.Spec.CapacityBytes)
	if v.Spec.ReadOnlyMany && want > v.Spec.CapacityBytes {
		return 0, backingimage.Errorf(backingimage.Precondition, "volume %s is for reading on many nodes and cannot grow: nobody could write to what is added", id)
	}
	if limitBytes > 0 && want > limitBytes {
		return 0, backingimage.Errorf(backingimage.OutOfRange, "volume %s: %s are needed, the limit is %s", id, backingimage.ExactSizeText(want), backingimage.ExactSizeText(limitBytes))
	}
	if err := p.roomToGrow(v, want); err != nil {
		return 0, err
	}
	if _, err := p.store.Volumes.Modify(ctx, id, func(now *v1alpha1.Volume) { now.Spec.CapacityBytes = max(now.Spec.CapacityBytes, want) }); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err = p.store.Volumes.Wait(ctx, id, func(now *v1alpha1.Volume) (bool, error) {
		if now == nil {
			return false, backingimage.Errorf(backingimage.NotFound, "volume %s was deleted meanwhile", id)
		}
		v = now
		if now.Status.State == v1alpha1.VolumeFailed {
			return false, failure(now)
		}
		return now.Status.CapacityBytes >= want, nil
	})
	return v.Status.CapacityBytes, waited(err, "volume %s: waiting for the agent on node %s to grow it to %s: %s", id, v.Spec.NodeName, backingimage.ExactSizeText(want), v.Status.Message)
}

// Get implements Controller.
func (p *Provisioner) Get(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	return p.store.Volumes.Live(ctx, id)
}

// List implements Controller.
func (p *Provisioner) List(ctx context.Context) ([]*v1alpha1.Volume, error) {
	return p.store.Volumes.LiveList(ctx)
}

// failure is the error that a failed volume stands for.
func failure(v *v1alpha1.Volume) error {
	return backingimage.Errorf(backingimage.Precondition, "volume %s failed: %s", v.Name, v.Status.Message)
}

// roundUp is the next size that a device can have, or, of more than that, the largest one: for which no disk has room.
func roundUp(bytes int64) int64 {
	return (min(bytes, math.MaxInt64-blockBytes+1) + blockBytes - 1) / blockBytes * blockBytes
}
