package csi

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/provisioner"
)

// NodeExpandVolume grows the filesystem to the device, which ControllerExpandVolume has grown.
func (n *node) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	id, path := r.GetVolumeId(), r.GetVolumePath()
	size, err := parseRange(r.GetCapacityRange())
	if err := firstError(required("volume_id", id), required("volume_path", path), err, checkOptional(r.GetVolumeCapability())); err != nil {
		return nil, err
	}
	attached, err := n.volumes.Attached(ctx, id)
	if err != nil {
		return nil, err
	}
	device, err := mount.Inspect(attached.Device)
	if err != nil {
		return nil, err
	}
	if device.Bytes < size.required {
		return nil, backingimage.Errorf(backingimage.NotReady, "volume %s: its device has %d bytes and %d are asked for; it is still being expanded, or ControllerExpandVolume was not called", id, device.Bytes, size.required)
	}
	if err := growAt(ctx, attached, path); err != nil {
		return nil, err
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: device.Bytes}, nil
}

// growAt grows the filesystem that path shows. A block device needs nothing, and what is around a partition is left alone.
func growAt(ctx context.Context, a provisioner.Attached, path string) error {
	shown, err := shownAt(a, path)
	if err != nil || shown.block || a.Device != a.FilesystemDevice {
		return err
	}
	writable, err := writableMount(a)
	if err != nil {
		return err
	}
	d, err := mount.Inspect(a.FilesystemDevice)
	if err != nil {
		return err
	}
	return mount.GrowMounted(ctx, d, writable, shown.fsType)
}

// writableMount finds where the filesystem is mounted writable, since growing it through a read-only mount is refused.
func writableMount(a provisioner.Attached) (string, error) {
	mounted, err := filesystemsOf(a)
	if err != nil {
		return "", err
	}
	for _, p := range mounted {
		if !p.ReadOnly {
			return p.Path, nil
		}
	}
	return "", backingimage.Errorf(backingimage.Precondition, "volume %s is mounted read-only; its filesystem is grown when it is staged with a mode that writes", a.Volume.Name)
}
