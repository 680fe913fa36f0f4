package provisioner

import (
	"context"
	"fmt"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Idempotent makes Create and CreateSnapshot of a Controller safe to repeat: a thing of that name that answers the request is returned
// as it is, one that does not is a Conflict that names each difference. The rest passes through.
type Idempotent struct{ Controller }

// Create implements Controller.
func (i Idempotent) Create(ctx context.Context, r CreateRequest) (*v1alpha1.Volume, error) {
	if existing, err := i.Get(ctx, VolumeID(r.Name)); err == nil {
		return i.again(ctx, existing, r)
	} else if !backingimage.Is(err, backingimage.NotFound) {
		return nil, err
	}
	created, err := i.Controller.Create(ctx, r)
	if !backingimage.Is(err, backingimage.Conflict) {
		return created, err
	}
	existing, err := i.Get(ctx, VolumeID(r.Name)) // another call was faster
	if err != nil {
		return nil, err
	}
	return i.again(ctx, existing, r)
}

// again answers a request for a volume that exists.
func (i Idempotent) again(ctx context.Context, existing *v1alpha1.Volume, r CreateRequest) (*v1alpha1.Volume, error) {
	if err := answers(existing, r); err != nil {
		return existing, err
	}
	return i.Released(ctx, existing)
}

// answers compares an existing volume with a request.
func answers(v *v1alpha1.Volume, r CreateRequest) error {
	if v.DeletionTimestamp != nil {
		return backingimage.Errorf(backingimage.NotReady, "a volume named %q is being deleted; try again when it is gone", r.Name)
	}
	var differs []string
	if v.Spec.Name != r.Name {
		differs = append(differs, fmt.Sprintf("its name is %q", v.Spec.Name))
	}
	if v.Spec.CapacityBytes < r.RequiredBytes {
		differs = append(differs, fmt.Sprintf("it has %s, at least %s are asked for", backingimage.ExactSizeText(v.Spec.CapacityBytes), backingimage.ExactSizeText(r.RequiredBytes)))
	}
	if r.LimitBytes > 0 && v.Spec.CapacityBytes > r.LimitBytes {
		differs = append(differs, fmt.Sprintf("it has %s, at most %s are asked for", backingimage.ExactSizeText(v.Spec.CapacityBytes), backingimage.ExactSizeText(r.LimitBytes)))
	}
	if v.Spec.SourceVolume != r.SourceVolume {
		differs = append(differs, fmt.Sprintf("it was cloned from volume %q, not %q", v.Spec.SourceVolume, r.SourceVolume))
	}
	if v.Spec.SourceHandle != r.SourceHandle {
		differs = append(differs, fmt.Sprintf("it was made from snapshot %q, not %q", v.Spec.SourceHandle, r.SourceHandle))
	}
	if v.Spec.ReadOnlyMany != r.ReadOnlyMany {
		differs = append(differs, fmt.Sprintf("it is for reading on many nodes: %t, not %t", v.Spec.ReadOnlyMany, r.ReadOnlyMany))
	}
	class := classParameters(r.Parameters)
	for _, key := range sortedKeys(class, v.Spec.Parameters) {
		if class[key] != v.Spec.Parameters[key] {
			differs = append(differs, fmt.Sprintf("its parameter %s was %s, not %s", key, shortened(v.Spec.Parameters[key]), shortened(class[key])))
		}
	}
	if len(differs) > 0 {
		return backingimage.Errorf(backingimage.Conflict, "volume %q exists and differs: %s", r.Name, strings.Join(differs, "; "))
	}
	return nil
}

// CreateSnapshot implements Snapshots.
func (i Idempotent) CreateSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error) {
	for {
		existing, err := i.SnapshotNamed(ctx, r.Name)
		switch {
		case err == nil && existing.Failed != nil && existing.Taken: // whoever asks relies on that point in time, and no other
			return existing, existing.Failed
		case err == nil && existing.Failed != nil: // left by a call that was killed before it took it away
			if err := i.DeleteSnapshot(ctx, existing.Handle); err != nil {
				return existing, err
			}
		case err == nil:
			return existing, existing.answers(r)
		case !backingimage.Is(err, backingimage.NotFound):
			return existing, err
		}
		created, err := i.Controller.CreateSnapshot(ctx, r)
		if !backingimage.Is(err, backingimage.Conflict) {
			return created, err
		}
		if _, lost := i.SnapshotNamed(ctx, r.Name); lost != nil { // it is no snapshot that has the name
			return created, err
		}
	}
}

// answers compares an existing snapshot with a request.
func (s Snapshot) answers(r SnapshotRequest) error {
	p, err := ParseSnapshotParameters(r.Parameters)
	if err != nil {
		return err
	}
	var differs []string
	if s.Volume != r.Volume {
		differs = append(differs, fmt.Sprintf("it is of volume %q, not %q", s.Volume, r.Volume))
	}
	if s.Type != p.Type {
		differs = append(differs, fmt.Sprintf("its type is %s, not %s", s.Type, p.Type))
	}
	if s.ExportType != p.ExportType {
		differs = append(differs, fmt.Sprintf("its %s is %q, not %q", keyExportType, s.ExportType, p.ExportType))
	}
	if len(differs) > 0 {
		return backingimage.Errorf(backingimage.Conflict, "snapshot %q exists and differs: %s", r.Name, strings.Join(differs, "; "))
	}
	if !s.Taken {
		return backingimage.Errorf(backingimage.NotReady, "snapshot %q is not taken yet: %s", r.Name, s.Message)
	}
	return nil
}
