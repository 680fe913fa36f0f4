package csi_test

import (
	"context"
	"errors"
	"io"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi"
	"plinth.dev/plinth/provisioner"
)

// extents is a controller whose snapshots have data in every second mebibyte.
type extents struct {
	provisioner.Controller
	count int64
}

func (e *extents) GetSnapshot(_ context.Context, handle string) (provisioner.Snapshot, error) {
	if handle != "snap://v/s" && handle != "snap://v/base" {
		return provisioner.Snapshot{}, backingimage.Errorf(backingimage.NotFound, "there is no snapshot %s", handle)
	}
	return provisioner.Snapshot{Handle: handle, Bytes: 2 * e.count * mib, Ready: true}, nil
}

func (e *extents) Extents(_ context.Context, _, base string, from int64, use func(offset, bytes int64) error) error {
	if base == "snap://v/elsewhere" {
		return backingimage.Errorf(backingimage.Precondition, "on different disks")
	}
	for i := range e.count {
		if at := 2 * i * mib; at+mib > from {
			if err := use(at, mib); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestSnapshotMetadata(t *testing.T) {
	client := spec.NewSnapshotMetadataClient(mustServe(t, csi.Options{Controller: &extents{count: 10}}))
	allocated := func(r *spec.GetMetadataAllocatedRequest) (offsets []int64, messages int, err error) {
		stream, err := client.GetMetadataAllocated(t.Context(), r)
		for err == nil {
			var m *spec.GetMetadataAllocatedResponse
			if m, err = stream.Recv(); err == nil {
				messages++
				if m.GetBlockMetadataType() != spec.BlockMetadataType_VARIABLE_LENGTH || m.GetVolumeCapacityBytes() != 20*mib || r.MaxResults > 0 && len(m.GetBlockMetadata()) > int(r.MaxResults) {
					t.Errorf("got %v", m)
				}
				for _, b := range m.GetBlockMetadata() {
					offsets = append(offsets, b.GetByteOffset())
				}
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return offsets, messages, err
	}
	for name, tc := range map[string]struct {
		from              int64
		most              int32
		extents, messages int
	}{
		"all at once":                            {0, 0, 10, 1},
		"three in a message":                     {0, 3, 10, 4},
		"from within an extent":                  {5*mib/2 - 1, 0, 9, 1},
		"from the end of one":                    {mib, 0, 9, 1},
		"from the end, which still has its size": {20 * mib, 5, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			offsets, messages, err := allocated(&spec.GetMetadataAllocatedRequest{SnapshotId: "snap://v/s", StartingOffset: tc.from, MaxResults: tc.most})
			if err != nil || len(offsets) != tc.extents || messages != tc.messages {
				t.Errorf("got %v in %d messages, %v", offsets, messages, err)
			}
		})
	}
	for name, tc := range map[string]struct {
		request *spec.GetMetadataAllocatedRequest
		want    codes.Code
	}{
		"no ID":             {&spec.GetMetadataAllocatedRequest{}, codes.InvalidArgument},
		"no such snapshot":  {&spec.GetMetadataAllocatedRequest{SnapshotId: "other"}, codes.NotFound},
		"a negative offset": {&spec.GetMetadataAllocatedRequest{SnapshotId: "snap://v/s", StartingOffset: -1}, codes.OutOfRange},
		"an offset beyond":  {&spec.GetMetadataAllocatedRequest{SnapshotId: "snap://v/s", StartingOffset: 20*mib + 1}, codes.OutOfRange},
		"a negative most":   {&spec.GetMetadataAllocatedRequest{SnapshotId: "snap://v/s", MaxResults: -1}, codes.InvalidArgument},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			_, _, err := allocated(tc.request)
			wantCode(t, err, tc.want)
		})
	}
	for base, want := range map[string]codes.Code{"snap://v/base": codes.OK, "": codes.InvalidArgument, "snap://v/elsewhere": codes.FailedPrecondition} {
		stream, err := client.GetMetadataDelta(t.Context(), &spec.GetMetadataDeltaRequest{BaseSnapshotId: base, TargetSnapshotId: "snap://v/s"})
		must(t, err)
		m, err := stream.Recv()
		if wantCode(t, err, want); want == codes.OK && len(m.GetBlockMetadata()) != 10 {
			t.Errorf("got %v", m)
		}
	}
}
