package csi

import (
	"context"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/provisioner"
)

// leastVolume is the least size of a volume in bytes: one sector.
const leastVolume = 512

// controller serves the Controller service. Publishing is not among its capabilities and answers Unimplemented.
type controller struct {
	csi.UnimplementedControllerServer
	volumes provisioner.Controller
}

func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: controllerCapabilities()}, nil
}

func (c *controller) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	request, err := createRequest(r)
	if err != nil {
		return nil, err
	}
	v, err := c.volumes.Create(ctx, request)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: volumeAnswer(v)}, nil
}

func (c *controller) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := required("volume_id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := c.volumes.Delete(ctx, r.GetVolumeId()); err != nil && !backingimage.Is(err, backingimage.NotFound) {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (c *controller) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	size, err := parseRange(r.GetCapacityRange())
	if err := firstError(required("volume_id", r.GetVolumeId()), err, checkOptional(r.GetVolumeCapability())); err != nil {
		return nil, err
	}
	if size == (sizes{}) {
		return nil, invalid("capacity_range", "is required; give required_bytes")
	}
	bytes, err := c.volumes.Expand(ctx, r.GetVolumeId(), size.required, size.limit)
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{
		CapacityBytes:         bytes,
		NodeExpansionRequired: r.GetVolumeCapability().GetBlock() == nil,
	}, nil
}

// checkOptional checks a capability that the caller may leave out.
func checkOptional(c *csi.VolumeCapability) error {
	if c == nil {
		return nil
	}
	return checkCapability(c)
}

func (c *controller) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	node := ""
	if t := r.GetAccessibleTopology(); len(t.GetSegments()) > 0 {
		var err error
		if node, err = parseTopology("accessible_topology", t); err != nil {
			return nil, err
		}
	}
	if caps := r.GetVolumeCapabilities(); len(caps) > 0 && checkCapabilities(caps) != nil {
		return &csi.GetCapacityResponse{}, nil // no volume can have these capabilities, of whatever size
	}
	available, largest, err := c.volumes.Capacity(ctx, r.GetParameters(), node)
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: available,
		MaximumVolumeSize: wrapperspb.Int64(largest),
		MinimumVolumeSize: wrapperspb.Int64(leastVolume),
	}, nil
}

func (c *controller) ControllerGetVolume(ctx context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	v, err := c.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{
		Volume: volumeAnswer(v),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{VolumeCondition: conditionOf(v)},
	}, nil
}

func (c *controller) volume(ctx context.Context, id string) (*v1alpha1.Volume, error) {
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	return c.volumes.Get(ctx, id)
}

// ValidateVolumeCapabilities confirms what the volume is and can do, or says in the message why not.
func (c *controller) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, firstError(required("volume_id", r.GetVolumeId()), checkCapabilities(nil))
	}
	v, err := c.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if reason := unconfirmed(v, r); reason != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: reason.Error()}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      r.GetVolumeContext(),
		VolumeCapabilities: r.GetVolumeCapabilities(),
		Parameters:         r.GetParameters(),
	}}, nil
}

func unconfirmed(v *v1alpha1.Volume, r *csi.ValidateVolumeCapabilitiesRequest) error {
	if got := r.GetVolumeContext(); len(got) > 0 && !maps.Equal(got, contextOf(v)) {
		return invalid("volume_context", "%v is not that of volume %s: %v", got, v.Name, contextOf(v))
	}
	if got := r.GetParameters(); len(got) > 0 && !maps.Equal(got, v.Spec.Parameters) {
		return invalid("parameters", "%v are not those with which volume %s was made: %v", got, v.Name, v.Spec.Parameters)
	}
	return firstError(checkMutable(r.GetMutableParameters()), checkCapabilities(r.GetVolumeCapabilities()), checkReaders(v, r.GetVolumeCapabilities()...))
}
