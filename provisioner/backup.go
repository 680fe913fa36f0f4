package provisioner

import (
	"context"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// backups keeps snapshots of TypeBackup.
type backups struct{}

var errNoTarget = backingimage.Errorf(backingimage.Unsupported, "snapshots of type %s are backups, and no backup target exists; use type %s or %s", TypeBackup, TypeSnap, TypeImage)

func (backups) create(context.Context, SnapshotRequest, *v1alpha1.Volume, SnapshotParameters) (Snapshot, error) {
	return Snapshot{}, errNoTarget
}

func (backups) named(_ context.Context, name string) (Snapshot, error) {
	return Snapshot{}, backingimage.Errorf(backingimage.NotFound, "there is no backup named %q", name)
}

func (backups) get(_ context.Context, h Handle) (Snapshot, error) {
	return Snapshot{}, backingimage.Errorf(backingimage.NotFound, "there is no backup %s: no backup target exists", h)
}

func (backups) list(context.Context) ([]Snapshot, error) { return nil, nil }

func (backups) delete(context.Context, Handle) error { return nil }

func (backups) source(context.Context, *draft, Handle) error { return errNoTarget }
