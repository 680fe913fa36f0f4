package provisioner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner/engine"
)

// Attacher is the Node of one machine: it waits for volumes and makes them block devices with the disks' engines.
type Attacher struct {
	name    string
	store   *store.Store
	engines *Engines
	clock   clock.PassiveClock
	waited  func(seconds float64) // observes how long Attach waited
}

var _ Node = (*Attacher)(nil)

// NewAttacher makes the Node named name. waited may be nil.
func NewAttacher(name string, s *store.Store, engines *Engines, c clock.PassiveClock, waited func(seconds float64)) *Attacher {
	if waited == nil {
		waited = func(float64) {}
	}
	return &Attacher{name: name, store: s, engines: engines, clock: c, waited: waited}
}

// Name implements Node.
func (a *Attacher) Name() string { return a.name }

// Attach implements Node.
func (a *Attacher) Attach(ctx context.Context, id string) (Attached, error) {
	v, err := a.volume(ctx, id)
	if err != nil {
		return Attached{}, err
	}
	if v.Spec.ReadOnlyMany {
		return a.attachReader(ctx, v)
	}
	e, err := a.engineOf(v)
	if err != nil {
		return Attached{}, err
	}
	began := a.clock.Now()
	if v, err = a.ready(ctx, v); err != nil {
		return Attached{}, err
	}
	a.waited(a.clock.Since(began).Seconds())
	unlock := a.engines.lock(id)
	device, err := e.Attach(ctx, id, engine.AttachOptions{Partitions: v.Spec.Partition > 0})
	if err != nil {
		unlock()
		return Attached{}, fmt.Errorf("attach volume %s: %w", id, err)
	}
	klog.FromContext(ctx).Info("Attached volume", "volume", id, "device", device)
	result := attached(v, device)
	result.recorded = a.recording(context.WithoutCancel(ctx), id, device, unlock)
	return result, nil
}

// recordTimeout bounds how long an attached volume waits for an API that does not answer.
const recordTimeout = 30 * time.Second

// recording begins to record a device, calls done after it, and returns what waits for that.
func (a *Attacher) recording(ctx context.Context, id, device string, done func()) (recorded func() error) {
	result := make(chan error, 1)
	go func() {
		defer done()
		ctx, cancel := context.WithTimeout(ctx, recordTimeout)
		defer cancel()
		result <- a.record(ctx, id, device)
	}()
	return sync.OnceValue(func() error { return <-result })
}

// ready waits until the volume is, and tells at the end of the wait how far it is.
func (a *Attacher) ready(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Volume, error) {
	id, latest := v.Name, v
	err := a.store.Volumes.Wait(ctx, id, func(now *v1alpha1.Volume) (bool, error) {
		if now == nil {
			return false, nil // the cache is behind, or it was deleted: find and the deadline decide
		}
		latest = now
		if now.Status.State == v1alpha1.VolumeFailed {
			return false, failure(now)
		}
		return now.Status.State == v1alpha1.VolumeReady, nil
	})
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		ctx, cancel := toTell(ctx)
		defer cancel()
		return latest, backingimage.Errorf(backingimage.NotReady, "volume %s is not ready yet: %s", id, waitsFor(ctx, a.store, latest))
	}
	return latest, err
}

// Detach implements Node.
func (a *Attacher) Detach(ctx context.Context, id string) error {
	defer a.engines.lock(id)()
	if err := a.engines.detach(ctx, id); err != nil {
		return err
	}
	if err := a.detachReader(ctx, id); err != nil {
		return err
	}
	return backingimage.IgnoreNotFound(a.record(ctx, id, ""))
}

// record writes the device into the volume's status. Delete relies on it.
func (a *Attacher) record(ctx context.Context, id, device string) error {
	_, err := a.store.Volumes.ModifyLiveStatus(ctx, id, func(v *v1alpha1.Volume) { v.Status.Device = device })
	return err
}

// Attached implements Node.
func (a *Attacher) Attached(ctx context.Context, id string) (Attached, error) {
	v, err := a.volume(ctx, id)
	if err != nil {
		return Attached{}, err
	}
	info, err := a.stat(ctx, v)
	switch {
	case err != nil && !backingimage.Is(err, backingimage.NotFound):
		return Attached{}, err
	case err != nil || info.Device == "":
		return Attached{}, backingimage.Errorf(backingimage.Precondition, "volume %s is not attached on node %s; stage it first", id, a.name)
	}
	return attached(v, info.Device), nil
}

// Condition implements Node.
func (a *Attacher) Condition(ctx context.Context, id string) (abnormal bool, message string) {
	ctx, cancel := context.WithTimeout(ctx, conditionTimeout)
	defer cancel()
	v, err := a.volume(ctx, id)
	if err != nil {
		return true, err.Error()
	}
	if v.Status.State == v1alpha1.VolumeFailed {
		return true, v.Status.Message
	}
	info, err := a.stat(ctx, v)
	switch {
	case backingimage.Is(err, backingimage.NotFound):
		return true, strings.TrimSpace("the volume's file is gone from disk " + v.Spec.DiskUUID)
	case err != nil:
		return true, err.Error()
	case info.Device == "":
		return true, "the volume's block device is gone"
	}
	return false, "attached as " + info.Device
}

const conditionTimeout = 5 * time.Second

// volume returns a volume, wherever it is.
func (a *Attacher) volume(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	if v, ok := a.store.Volumes.Get(id); ok {
		return v, nil
	}
	return a.store.Volumes.Live(ctx, id)
}

// engineOf returns the engine of a volume's disk, which must be one of this node.
func (a *Attacher) engineOf(v *v1alpha1.Volume) (engine.Engine, error) {
	e, open := a.engines.of(v.Spec.DiskUUID)
	switch {
	case open:
		return e, nil
	case v.Spec.NodeName == a.name:
		return nil, backingimage.Errorf(backingimage.NotReady, "volume %s is on disk %s, which is not there%s", v.Name, v.Spec.DiskUUID, diskTrouble(a.store, v.Spec.DiskUUID))
	}
	return nil, backingimage.Errorf(backingimage.Precondition, "volume %s is on disk %s of node %s, this is node %s", v.Name, v.Spec.DiskUUID, v.Spec.NodeName, a.name)
}

// stat returns what of a volume is on this node. NotFound.
func (a *Attacher) stat(ctx context.Context, v *v1alpha1.Volume) (engine.Info, error) {
	if v.Spec.ReadOnlyMany {
		info, _, err := a.statReader(ctx, v.Name)
		return info, err
	}
	e, err := a.engineOf(v)
	if err != nil {
		return engine.Info{}, err
	}
	return e.Stat(ctx, v.Name)
}

// diskTrouble is ": " and why a disk cannot be used, "" when it can, or nobody says why.
func diskTrouble(s *store.Store, uuid string) string {
	d, ok := s.Disks.Get(uuid)
	if !ok {
		return ": it is not registered"
	}
	ready := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status == metav1.ConditionTrue {
		return ""
	}
	return because(ready)
}

func attached(v *v1alpha1.Volume, device string) Attached {
	fs := device
	if v.Spec.Partition > 0 {
		fs = fmt.Sprintf("%sp%d", device, v.Spec.Partition)
	}
	return Attached{Volume: v, Device: device, FilesystemDevice: fs, ReadOnly: v.Spec.ReadOnlyMany}
}
