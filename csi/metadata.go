package csi

import (
	"context"
	"path"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner"
)

// metadata serves the SnapshotMetadata service: where a snapshot has data, and where it differs from another one.
type metadata struct {
	csi.UnimplementedSnapshotMetadataServer
	volumes provisioner.Controller
}

// tuples in a message, when the caller does not say.
const tuples = 1024

// GetMetadataAllocated streams where a snapshot has data.
func (m *metadata) GetMetadataAllocated(r *csi.GetMetadataAllocatedRequest, to csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if err := required("snapshot_id", r.GetSnapshotId()); err != nil {
		return err
	}
	return m.stream(to.Context(), extentsRequest{snapshot: r.GetSnapshotId(), from: r.GetStartingOffset(), most: r.GetMaxResults()},
		func(bytes int64, list []*csi.BlockMetadata) error {
			return to.Send(&csi.GetMetadataAllocatedResponse{BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: bytes, BlockMetadata: list})
		})
}

// GetMetadataDelta streams where a snapshot may differ from an earlier one. FailedPrecondition, which has the caller make a full backup,
// when the two cannot be compared.
func (m *metadata) GetMetadataDelta(r *csi.GetMetadataDeltaRequest, to csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if err := firstError(required("base_snapshot_id", r.GetBaseSnapshotId()), required("target_snapshot_id", r.GetTargetSnapshotId())); err != nil {
		return err
	}
	return m.stream(to.Context(), extentsRequest{snapshot: r.GetTargetSnapshotId(), base: r.GetBaseSnapshotId(), from: r.GetStartingOffset(), most: r.GetMaxResults()},
		func(bytes int64, list []*csi.BlockMetadata) error {
			return to.Send(&csi.GetMetadataDeltaResponse{BlockMetadataType: csi.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: bytes, BlockMetadata: list})
		})
}

// extentsRequest is either call, parsed.
type extentsRequest struct {
	snapshot, base string // base is "" for all that has data
	from           int64
	most           int32 // tuples in a message
}

// stream sends the extents in messages of a bounded size, and one message at the least, since it tells the size.
func (m *metadata) stream(ctx context.Context, r extentsRequest, send func(bytes int64, list []*csi.BlockMetadata) error) error {
	if r.most < 0 {
		return invalid("max_results", "%d is negative", r.most)
	}
	s, err := m.volumes.GetSnapshot(ctx, r.snapshot)
	if err != nil {
		return err
	}
	if r.from < 0 || r.from > s.Bytes {
		return backingimage.Errorf(backingimage.OutOfRange, "starting_offset: %d is not within snapshot %s, which has %d bytes", r.from, r.snapshot, s.Bytes)
	}
	most := int(r.most)
	if most == 0 {
		most = tuples
	}
	var list []*csi.BlockMetadata
	sent := false
	flush := func() error {
		sent = true
		err := send(s.Bytes, list)
		list = nil
		return err
	}
	err = m.volumes.Extents(ctx, r.snapshot, r.base, r.from, func(offset, bytes int64) error {
		list = append(list, &csi.BlockMetadata{ByteOffset: offset, SizeBytes: bytes})
		if len(list) < most {
			return nil
		}
		return flush()
	})
	if err == nil && (len(list) > 0 || !sent) {
		err = flush()
	}
	return err
}

// observeStream is observe for calls whose answer is a stream.
func (o *observer) observeStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	method := path.Base(info.FullMethod)
	logger := o.logger.WithValues("method", method)
	start := o.clock.Now()
	_, cause := recovered(klog.NewContext(stream.Context(), logger), nil, func(ctx context.Context, _ any) (any, error) {
		return nil, next(server, &observedStream{stream, ctx})
	})
	took := o.clock.Since(start)
	err := statusOf(cause)
	if o.durations != nil {
		o.durations.WithLabelValues(method, status.Code(err).String()).Observe(took.Seconds())
	}
	logOutcome(logger.WithValues("duration", took), method, status.Code(err), cause)
	return err
}

// observedStream has a logger in its context.
type observedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *observedStream) Context() context.Context { return s.ctx }
