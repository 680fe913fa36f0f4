package csi

import (
	"cmp"
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/provisioner"
)

// NodeGetVolumeStats says how full a volume is and how it is. A volume that is too ill to be measured is answered with
// its condition alone.
func (n *node) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	id, path := r.GetVolumeId(), r.GetVolumePath()
	if err := firstError(required("volume_id", id), required("volume_path", path)); err != nil {
		return nil, err
	}
	attached, err := n.volumes.Attached(ctx, id)
	if absent(err) {
		return nil, notAt(id, path)
	}
	if err != nil {
		return nil, err
	}
	abnormal, message := n.volumes.Condition(ctx, id)
	usage, err := usageAt(attached, path)
	if err != nil && (!abnormal || backingimage.Is(err, backingimage.NotFound)) {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{
		Usage:           usage,
		VolumeCondition: &csi.VolumeCondition{Abnormal: abnormal, Message: cmp.Or(message, "the volume is well")},
	}, nil
}

func notAt(id, path string) error {
	return backingimage.Errorf(backingimage.NotFound, "volume %s is not on %s", id, path)
}

// usageAt measures the volume's filesystem or device. NotFound when path shows neither.
func usageAt(a provisioner.Attached, path string) ([]*csi.VolumeUsage, error) {
	shown, err := shownAt(a, path)
	if err != nil {
		return nil, err
	}
	if shown.block {
		d, err := mount.Inspect(a.Device)
		return []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: d.Bytes}}, err
	}
	bytes, inodes, err := mount.UsageOf(path)
	if err != nil {
		return nil, err
	}
	return []*csi.VolumeUsage{usage(csi.VolumeUsage_BYTES, bytes), usage(csi.VolumeUsage_INODES, inodes)}, nil
}

func usage(unit csi.VolumeUsage_Unit, u mount.Usage) *csi.VolumeUsage {
	return &csi.VolumeUsage{Unit: unit, Total: u.Total, Used: u.Used, Available: u.Available}
}

// shown is how a path shows a volume.
type shown struct {
	block  bool
	fsType string
}

// shownAt tells how path shows the volume. NotFound when it does not.
func shownAt(a provisioner.Attached, path string) (shown, error) {
	points, err := mount.At(path)
	if err != nil {
		return shown{}, err
	}
	if len(points) == 0 {
		return shown{}, notAt(a.Volume.Name, path)
	}
	top := points[len(points)-1]
	fs, err := mount.Inspect(a.FilesystemDevice)
	if err != nil {
		return shown{}, err
	}
	if top.Device == fs.ID {
		return shown{fsType: top.Type}, nil
	}
	whole, err := mount.Inspect(a.Device)
	if err != nil {
		return shown{}, err
	}
	if top.Shows(whole) {
		return shown{block: true}, nil
	}
	return shown{}, notAt(a.Volume.Name, path)
}
