package provisioner

import (
	"cmp"
	"context"
	"slices"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// SnapshotRequest asks for a snapshot, in domain words.
type SnapshotRequest struct {
	Name       string            // the orchestrator's name; the same name means the same snapshot
	Volume     string            // ID of the volume
	Parameters map[string]string // the VolumeSnapshotClass's
}

// Snapshot is a point in time of a volume as orchestrators know it, whatever keeps it.
type Snapshot struct {
	Handle     string // by which it is known from now on
	Type       string // TypeSnap, TypeBackup or TypeImage
	Volume     string // ID of its volume; "" when it is of none
	ExportType string // of TypeImage: the format of the image's file
	Bytes      int64  // the least size of a volume made from it; 0 while that is not known
	Created    time.Time
	Taken      bool   // the point in time; the volume is needed no longer
	Ready      bool   // a volume can be made from it
	Message    string // why it is not ready
	Failed     error  // why it never will be
}

// Snapshots is the cluster's side of a snapshot's life. All methods are safe to repeat; errors are as Controller's.
type Snapshots interface {
	// CreateSnapshot takes a point in time of a volume and returns when it is taken. NotFound when there is no volume; Full; an
	// equal snapshot of that name is returned as it is, a different one is Conflict.
	CreateSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error)
	// DeleteSnapshot removes a snapshot and returns when it is gone; a handle that names none is success. InUse, with the users'
	// names, while something needs it.
	DeleteSnapshot(ctx context.Context, handle string) error
	// GetSnapshot returns a snapshot. NotFound, also when the handle cannot be read.
	GetSnapshot(ctx context.Context, handle string) (Snapshot, error)
	// SnapshotNamed returns the snapshot that was asked for by a name. NotFound.
	SnapshotNamed(ctx context.Context, name string) (Snapshot, error)
	// ListSnapshots returns all snapshots, sorted by handle.
	ListSnapshots(ctx context.Context) ([]Snapshot, error)
	// Extents calls use with the ranges, in bytes and in order, that end behind the byte from and in which a snapshot of TypeSnap may
	// differ from another, base, or in which it has data (base ""). NotFound; Precondition when that cannot be told; NotReady.
	Extents(ctx context.Context, handle, base string, from int64, use func(offset, bytes int64) error) error
}

// Types of snapshots: what a VolumeSnapshotClass's type is, and the scheme of a handle.
const (
	TypeSnap   = "snap" // a file on the volume's disk
	TypeBackup = "bak"  // in an object store
	TypeImage  = "bi"   // a backing image
)

// snapshotTypes is what keeps the snapshots of each type.
var snapshotTypes = map[string]func(*Provisioner) snapshotType{
	TypeSnap:   func(p *Provisioner) snapshotType { return diskSnapshots{p} },
	TypeBackup: func(p *Provisioner) snapshotType { return backups{p} },
	TypeImage:  func(p *Provisioner) snapshotType { return imageSnapshots{p} },
}

// snapshotType keeps the snapshots of one type. Its handles are of that type.
type snapshotType interface {
	// create takes a point in time of a volume that is ready, and returns when it is taken. Conflict when there is one of that name.
	create(ctx context.Context, r SnapshotRequest, v *v1alpha1.Volume, p SnapshotParameters) (Snapshot, error)
	// named returns the snapshot that was asked for by a name. NotFound.
	named(ctx context.Context, name string) (Snapshot, error)
	// get returns the snapshot of a handle. NotFound.
	get(ctx context.Context, h Handle) (Snapshot, error)
	// list returns all.
	list(ctx context.Context) ([]Snapshot, error)
	// delete removes the snapshot of a handle; see Snapshots.
	delete(ctx context.Context, h Handle) error
	// source makes a draft start from the snapshot of a handle.
	source(ctx context.Context, d *draft, h Handle) error
}

// CreateSnapshot implements Snapshots. It does not look for an existing snapshot first; Idempotent does.
func (p *Provisioner) CreateSnapshot(ctx context.Context, r SnapshotRequest) (Snapshot, error) {
	if r.Name == "" {
		return Snapshot{}, backingimage.Errorf(backingimage.Invalid, "name: a snapshot needs one")
	}
	parameters, err := ParseSnapshotParameters(r.Parameters)
	if err != nil {
		return Snapshot{}, err
	}
	v, err := p.store.Volumes.Live(ctx, r.Volume)
	if err != nil {
		return Snapshot{}, err
	}
	if v, err = p.settled(ctx, v); err != nil {
		return Snapshot{}, err
	}
	return snapshotTypes[parameters.Type](p).create(ctx, r, v, parameters)
}

// DeleteSnapshot implements Snapshots.
func (p *Provisioner) DeleteSnapshot(ctx context.Context, handle string) error {
	h, err := ParseHandle(handle)
	if err != nil {
		return nil // what cannot be read names nothing
	}
	return backingimage.IgnoreNotFound(snapshotTypes[h.Type](p).delete(ctx, h))
}

// GetSnapshot implements Snapshots.
func (p *Provisioner) GetSnapshot(ctx context.Context, handle string) (Snapshot, error) {
	h, err := ParseHandle(handle)
	if err != nil {
		return Snapshot{}, backingimage.Errorf(backingimage.NotFound, "%w", err)
	}
	return snapshotTypes[h.Type](p).get(ctx, h)
}

// SnapshotNamed implements Snapshots.
func (p *Provisioner) SnapshotNamed(ctx context.Context, name string) (Snapshot, error) {
	for _, t := range sortedTypes() {
		if s, err := snapshotTypes[t](p).named(ctx, name); !backingimage.Is(err, backingimage.NotFound) {
			return s, err
		}
	}
	return Snapshot{}, backingimage.Errorf(backingimage.NotFound, "there is no snapshot named %q", name)
}

// ListSnapshots implements Snapshots.
func (p *Provisioner) ListSnapshots(ctx context.Context) ([]Snapshot, error) {
	var all []Snapshot
	for _, t := range sortedTypes() {
		list, err := snapshotTypes[t](p).list(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return cmp.Compare(a.Handle, b.Handle) })
	return all, nil
}

func sortedTypes() []string { return []string{TypeBackup, TypeImage, TypeSnap} }
