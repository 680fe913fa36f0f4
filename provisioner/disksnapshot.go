package provisioner

import (
	"context"
	"errors"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// diskSnapshots keeps snapshots of TypeSnap: Snapshot objects, which the agent of the volume's disk brings about.
type diskSnapshots struct{ *Provisioner }

func (p diskSnapshots) create(ctx context.Context, r SnapshotRequest, v *v1alpha1.Volume, _ SnapshotParameters) (Snapshot, error) {
	s, err := p.store.Snapshots.Create(ctx, &v1alpha1.Snapshot{
		ObjectMeta: metav1.ObjectMeta{Name: SnapshotID(r.Name), Finalizers: []string{v1alpha1.SnapshotFinalizer}},
		Spec: v1alpha1.SnapshotSpec{
			Name: r.Name, Volume: v.Name, Type: v1alpha1.SnapshotSnap, DiskUUID: v.Spec.DiskUUID, NodeName: v.Spec.NodeName, Image: v.Spec.Image.DeepCopy(),
		},
	})
	if err != nil {
		return Snapshot{}, err
	}
	if s, err = p.taken(ctx, s); s.Status.State == v1alpha1.SnapshotFailed { // nothing was made, and the next call begins anew
		err = errors.Join(err, p.remove(ctx, s))
	}
	return snapshotOf(s), err
}

// taken waits until a snapshot is taken and returns the latest of it, also beside an error.
func (p *Provisioner) taken(ctx context.Context, s *v1alpha1.Snapshot) (*v1alpha1.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err := p.store.Snapshots.Wait(ctx, s.Name, func(now *v1alpha1.Snapshot) (bool, error) {
		if now == nil || now.UID != s.UID {
			return false, nil
		}
		s = now
		return now.Status.State == v1alpha1.SnapshotReady, snapshotFailure(now)
	})
	return s, waited(err, "snapshot %s of volume %s is not taken yet by the agent on node %s: %s%s", s.Name, s.Spec.Volume, s.Spec.NodeName, snapshotMessage(s), diskTrouble(p.store, s.Spec.DiskUUID))
}

// snapshotFailure is the error that a failed snapshot stands for, nil for any other.
func snapshotFailure(s *v1alpha1.Snapshot) error {
	if s.Status.State != v1alpha1.SnapshotFailed {
		return nil
	}
	kind := backingimage.Precondition
	if c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Reason == backingimage.Full.String() {
		kind = backingimage.Full
	}
	return backingimage.Errorf(kind, "snapshot %s of volume %s failed: %s", s.Name, s.Spec.Volume, snapshotMessage(s))
}

func snapshotMessage(s *v1alpha1.Snapshot) string {
	if c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return "it has not looked at it"
}

// snapshotOf is a Snapshot object as orchestrators know it.
func snapshotOf(s *v1alpha1.Snapshot) Snapshot {
	known := Snapshot{
		Handle: Handle{Type: TypeSnap, Volume: s.Spec.Volume, Name: s.Name}.String(), Type: TypeSnap, Volume: s.Spec.Volume,
		Bytes: s.Status.Bytes, Created: s.CreationTimestamp.Time, Ready: s.Status.State == v1alpha1.SnapshotReady && s.DeletionTimestamp == nil,
		Failed: snapshotFailure(s),
	}
	known.Taken = known.Ready
	if s.Status.CreationTime != nil {
		known.Created = s.Status.CreationTime.Time
	}
	switch {
	case s.DeletionTimestamp != nil:
		known.Message = "is being deleted"
	case !known.Ready:
		known.Message = snapshotMessage(s)
	}
	return known
}

func (p diskSnapshots) named(ctx context.Context, name string) (Snapshot, error) {
	s, err := p.store.Snapshots.Live(ctx, SnapshotID(name))
	if err == nil && s.Spec.Type != v1alpha1.SnapshotSnap {
		err = backingimage.Errorf(backingimage.Conflict, "the name %s is that of a snapshot which Plinth takes for itself (%s); use another", s.Name, s.Spec.Type)
	}
	if err != nil {
		return Snapshot{}, err
	}
	return snapshotOf(s), nil
}

// find returns the object of a handle. NotFound.
func (p diskSnapshots) find(ctx context.Context, h Handle) (*v1alpha1.Snapshot, error) {
	s, err := p.store.Snapshots.Live(ctx, h.Name)
	if err == nil && (s.Spec.Volume != h.Volume || s.Spec.Type != v1alpha1.SnapshotSnap) {
		err = backingimage.Errorf(backingimage.NotFound, "there is no snapshot %q of volume %s", h.Name, h.Volume)
	}
	return s, err
}

func (p diskSnapshots) get(ctx context.Context, h Handle) (Snapshot, error) {
	s, err := p.find(ctx, h)
	if err != nil {
		return Snapshot{}, err
	}
	return snapshotOf(s), nil
}

func (p diskSnapshots) list(ctx context.Context) ([]Snapshot, error) {
	all, err := p.store.Snapshots.LiveList(ctx)
	var list []Snapshot
	for _, s := range all {
		if s.Spec.Type == v1alpha1.SnapshotSnap {
			list = append(list, snapshotOf(s))
		}
	}
	return list, err
}

func (p diskSnapshots) delete(ctx context.Context, h Handle) error {
	s, err := p.find(ctx, h)
	if err != nil {
		return err
	}
	users, err := p.restoring(ctx, s.Name)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return backingimage.Errorf(backingimage.InUse, "snapshot %s is still needed by volumes that are being made from it: %s; wait until they are ready, or delete them first", s.Name, strings.Join(users, ", "))
	}
	return p.remove(ctx, s)
}

// restoring are the volumes that still need a snapshot to be made, those included that the cache does not know yet.
func (p diskSnapshots) restoring(ctx context.Context, snapshot string) (users []string, err error) {
	all, err := p.store.Volumes.LiveList(ctx)
	for _, v := range all {
		if v.Spec.SourceSnapshot == snapshot && v.BeingMade() {
			users = append(users, v.Name)
		}
	}
	slices.Sort(users)
	return users, err
}

// remove deletes a Snapshot object and returns when it is gone, and its file with it.
func (p diskSnapshots) remove(ctx context.Context, s *v1alpha1.Snapshot) error {
	if err := p.store.Snapshots.Delete(ctx, s.Name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.options.AgentWait)
	defer cancel()
	err := p.store.Snapshots.Wait(ctx, s.Name, func(now *v1alpha1.Snapshot) (bool, error) {
		if now == nil || now.UID != s.UID {
			return true, nil
		}
		s = now
		return false, nil
	})
	return waited(err, "snapshot %s: waiting for the agent on node %s to remove it: %s%s", s.Name, s.Spec.NodeName, snapshotMessage(s), diskTrouble(p.store, s.Spec.DiskUUID))
}

// source makes a draft start from a snapshot, once that is taken.
func (p diskSnapshots) source(ctx context.Context, d *draft, h Handle) error {
	s, err := p.find(ctx, h)
	if err != nil {
		return err
	}
	if s.DeletionTimestamp != nil {
		return backingimage.Errorf(backingimage.Precondition, "snapshot %s is being deleted; no volume can be made from it", s.Name)
	}
	if s.Status.State != v1alpha1.SnapshotReady {
		if s, err = p.taken(ctx, s); err != nil {
			return err
		}
	}
	d.source = &origin{
		what: "snapshot " + s.Name, snapshot: s.Name, disk: s.Spec.DiskUUID, bytes: s.Status.Bytes, image: s.Spec.Image,
	}
	return nil
}
