package csi

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/provisioner"
)

// publication is a NodePublishVolume call, parsed.
type publication struct {
	volume   string
	staged   string
	target   string
	block    bool
	readOnly bool
	shared   bool // by several workloads of this node
}

func publishRequest(r *csi.NodePublishVolumeRequest) (publication, error) {
	c := r.GetVolumeCapability()
	p := publication{
		volume:   r.GetVolumeId(),
		staged:   r.GetStagingTargetPath(),
		target:   r.GetTargetPath(),
		block:    c.GetBlock() != nil,
		readOnly: r.GetReadonly() || readerOnly(c),
		shared:   c.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER || forManyReaders(c),
	}
	err := firstError(required("volume_id", p.volume), requiredPath("target_path", p.target), checkCapability(c))
	if err == nil && p.staged == "" { // the specification gives this one field another code
		err = backingimage.Errorf(backingimage.Precondition, "staging_target_path: is required and empty; stage the volume first")
	}
	return p, err
}

// NodePublishVolume shows a staged volume at the workload's path.
func (n *node) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	p, err := publishRequest(r)
	if err != nil {
		return nil, err
	}
	attached, err := n.volumes.Attached(ctx, p.volume)
	if err != nil {
		return nil, err
	}
	source, d, err := p.source(attached)
	if err != nil {
		return nil, err
	}
	if done, err := p.published(d); err != nil || done {
		return &csi.NodePublishVolumeResponse{}, err
	}
	if err := p.admit(d); err != nil {
		return nil, err
	}
	if err := p.show(source); err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// source is what is shown: the staged filesystem, or the device. Precondition when it is not staged that way.
func (p publication) source(a provisioner.Attached) (string, mount.Device, error) {
	mounted, err := filesystemsOf(a)
	if err != nil {
		return "", mount.Device{}, err
	}
	if p.block {
		if len(mounted) > 0 {
			return "", mount.Device{}, backingimage.Errorf(backingimage.Precondition, "volume %s is staged as a filesystem on %s; unstage it before it is published as a block device", p.volume, pathsOf(mounted))
		}
		d, err := mount.Inspect(a.Device)
		return a.Device, d, err
	}
	d, err := mount.Inspect(a.FilesystemDevice)
	if err != nil {
		return "", d, err
	}
	points, err := mount.At(p.staged)
	if err == nil && (len(points) == 0 || points[len(points)-1].Device != d.ID) {
		err = backingimage.Errorf(backingimage.Precondition, "volume %s is not staged on %s; stage it there first", p.volume, p.staged)
	}
	return p.staged, d, err
}

// published reports whether the target already shows the volume as wanted.
func (p publication) published(d mount.Device) (bool, error) {
	points, err := mount.At(p.target)
	if err != nil || len(points) == 0 {
		return false, err
	}
	top := points[len(points)-1]
	switch {
	case !top.Shows(d):
		return false, backingimage.Errorf(backingimage.Precondition, "%s already shows something else (%s) and not volume %s; unmount it there", p.target, top.Type, p.volume)
	case top.ReadOnly != p.readOnly:
		return false, backingimage.Errorf(backingimage.Conflict, "volume %s is already published on %s, read-only %t; unpublish it first", p.volume, p.target, top.ReadOnly)
	}
	return true, nil
}

// admit refuses a second workload where the access mode does, and makes a block device writable or not, which it can
// only be for all.
func (p publication) admit(d mount.Device) error {
	points, err := mount.Showing(d)
	if err != nil {
		return err
	}
	others, err := without(points, p.staged, p.target)
	if err != nil {
		return err
	}
	if len(others) > 0 && !p.shared {
		return backingimage.Errorf(backingimage.Precondition, "volume %s is already published on %s and its access mode allows one workload; unpublish it there, or use ReadWriteOnce (single-node-multi-writer)", p.volume, pathsOf(others))
	}
	if !p.block || d.ReadOnly == p.readOnly {
		return nil
	}
	if len(others) > 0 {
		return backingimage.Errorf(backingimage.Precondition, "volume %s is published on %s, read-only %t, and a block device is so for all its users; unpublish it there", p.volume, pathsOf(others), d.ReadOnly)
	}
	return mount.SetReadOnly(d.Path, p.readOnly)
}

// show makes the target and binds the source there.
func (p publication) show(source string) error {
	if err := p.makeTarget(); err != nil {
		return fmt.Errorf("make target: %w", err)
	}
	return mount.Bind(source, p.target, p.readOnly)
}

func (p publication) makeTarget() error {
	if p.block {
		f, err := os.OpenFile(p.target, os.O_CREATE|os.O_RDONLY, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if err := os.Mkdir(p.target, 0o750); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// NodeUnpublishVolume takes away every mount on the target, and the target.
func (n *node) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	id, target := r.GetVolumeId(), r.GetTargetPath()
	if err := firstError(required("volume_id", id), requiredPath("target_path", target)); err != nil {
		return nil, err
	}
	if err := n.checkTarget(ctx, id, target); err != nil {
		return nil, err
	}
	if err := mount.Unmount(target); err != nil {
		return nil, err
	}
	if err := removeTarget(target); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// checkTarget refuses to unmount what is known to be something else.
func (n *node) checkTarget(ctx context.Context, id, target string) error {
	attached, err := n.volumes.Attached(ctx, id)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	points, err := mount.At(target)
	if err != nil || len(points) == 0 {
		return err
	}
	for _, path := range []string{attached.Device, attached.FilesystemDevice} {
		d, err := mount.Inspect(path)
		if err != nil {
			return err
		}
		if points[len(points)-1].Shows(d) {
			return nil
		}
	}
	return backingimage.Errorf(backingimage.Precondition, "%s shows something else than volume %s; unmount it there", target, id)
}

// removeTarget removes a file, or a directory that is empty: files that were written while nothing was mounted there
// are someone's.
func removeTarget(path string) error {
	err := os.Remove(path)
	switch {
	case err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
		return nil
	case errors.Is(err, unix.ENOTEMPTY):
		return backingimage.Errorf(backingimage.Precondition, "target %s has files in it that are not the volume's; move them away", path)
	}
	return fmt.Errorf("remove target: %w", err)
}
