package csi

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner"
)

func (c *controller) CreateSnapshot(ctx context.Context, r *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if err := firstError(checkName(r.GetName()), required("source_volume_id", r.GetSourceVolumeId())); err != nil {
		return nil, err
	}
	s, err := c.volumes.CreateSnapshot(ctx, provisioner.SnapshotRequest{Name: r.GetName(), Volume: r.GetSourceVolumeId(), Parameters: r.GetParameters()})
	if err != nil {
		return nil, err
	}
	return &csi.CreateSnapshotResponse{Snapshot: snapshotAnswer(s)}, nil
}

func (c *controller) DeleteSnapshot(ctx context.Context, r *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	if err := c.volumes.DeleteSnapshot(ctx, r.GetSnapshotId()); err != nil {
		return nil, err
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

func (c *controller) GetSnapshot(ctx context.Context, r *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	s, err := c.volumes.GetSnapshot(ctx, r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csi.GetSnapshotResponse{Snapshot: snapshotAnswer(s)}, nil
}

// ListSnapshots pages by handle, as ListVolumes does by ID. One that is asked for by its handle is looked up, since a handle that was
// written by hand stands in no list.
func (c *controller) ListSnapshots(ctx context.Context, r *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if r.GetMaxEntries() < 0 {
		return nil, invalid("max_entries", "%d is negative", r.GetMaxEntries())
	}
	first, err := decodeToken(r.GetStartingToken())
	if err != nil {
		return nil, err
	}
	all, err := c.snapshots(ctx, r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	var list []provisioner.Snapshot
	for _, s := range all {
		if volume := r.GetSourceVolumeId(); volume == "" || s.Volume == volume {
			list = append(list, s)
		}
	}
	page, next := pageOf(list, snapshotHandle, first, int(r.GetMaxEntries()))
	answer := &csi.ListSnapshotsResponse{NextToken: next}
	for _, s := range page {
		answer.Entries = append(answer.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: snapshotAnswer(s)})
	}
	return answer, nil
}

func snapshotHandle(s provisioner.Snapshot) string { return s.Handle }

// snapshots are all, or the one of a handle, if there is one.
func (c *controller) snapshots(ctx context.Context, handle string) ([]provisioner.Snapshot, error) {
	if handle == "" {
		return c.volumes.ListSnapshots(ctx)
	}
	s, err := c.volumes.GetSnapshot(ctx, handle)
	if err != nil {
		return nil, backingimage.IgnoreNotFound(err)
	}
	return []provisioner.Snapshot{s}, nil
}

// snapshotAnswer is a snapshot in the specification's words.
func snapshotAnswer(s provisioner.Snapshot) *csi.Snapshot {
	answer := &csi.Snapshot{SnapshotId: s.Handle, SourceVolumeId: s.Volume, SizeBytes: s.Bytes, ReadyToUse: s.Ready, CreationTime: timestamppb.New(s.Created)}
	if s.Created.IsZero() { // an image that is made when it is first needed
		answer.CreationTime = &timestamppb.Timestamp{}
	}
	return answer
}
