package csi

import (
	"cmp"
	"context"
	"os"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/provisioner"
)

// filesystem stages a volume in Filesystem mode. Each step first looks whether it was done by a call that was killed.
func (s staging) filesystem(ctx context.Context, a provisioner.Attached) error {
	d, err := s.inspect(ctx, a)
	if err != nil {
		return err
	}
	fsType, err := s.mounted(d)
	if err != nil {
		return err
	}
	if fsType == "" {
		if fsType, err = s.mount(ctx, a, d); err != nil {
			return err
		}
	}
	if fsType == mount.XFS && s.grows(a) {
		return mount.GrowMounted(ctx, d, s.path, fsType)
	}
	return nil
}

// inspect describes the device that holds the filesystem. Precondition when it is a partition that is not there.
func (s staging) inspect(ctx context.Context, a provisioner.Attached) (mount.Device, error) {
	d, err := mount.Inspect(a.FilesystemDevice)
	if !backingimage.Is(err, backingimage.NotFound) || a.Device == a.FilesystemDevice {
		return d, err
	}
	whole, err := mount.Inspect(a.Device)
	if err != nil {
		return d, err
	}
	content, err := mount.Probe(ctx, whole)
	if err != nil {
		return d, err
	}
	w := wishOf(a.Volume, s)
	return d, w.refuse("is not there; set class parameter partition to one that is, or remove it to mount the whole device. Its partitions: %s", listOf(content.Partitions))
}

// mount mounts the filesystem, made ready first unless it is at work on another path: the kernel then shows the same one
// on this path too.
func (s staging) mount(ctx context.Context, a provisioner.Attached, d mount.Device) (fsType string, err error) {
	inUse, err := s.inUse(d)
	if err != nil {
		return "", err
	}
	if !inUse && !a.ReadOnly {
		if d, err = writable(d); err != nil {
			return "", err
		}
	}
	content, err := mount.Probe(ctx, d)
	if err != nil {
		return "", err
	}
	v, err := decide(content, wishOf(a.Volume, s))
	if err != nil {
		return "", err
	}
	if !inUse {
		if err := s.prepare(ctx, a, d, v); err != nil {
			return "", err
		}
	}
	return v.fsType, mount.Filesystem(ctx, d, s.path, v.fsType, s.options)
}

// prepare makes the device's filesystem ready to be mounted: there, whole, and as large as its device.
func (s staging) prepare(ctx context.Context, a provisioner.Attached, d mount.Device, v verdict) error {
	if v.format {
		if err := mount.Format(ctx, d, v.fsType, a.Volume.Spec.MkfsParams); err != nil {
			return err
		}
	}
	if s.readOnly {
		return nil
	}
	if err := mount.Check(ctx, d, v.fsType); err != nil || !s.grows(a) {
		return err
	}
	return mount.GrowUnmounted(ctx, d, v.fsType)
}

// grows reports whether the filesystem is to fill its device. What is around a partition is not ours to change.
func (s staging) grows(a provisioner.Attached) bool {
	return !s.readOnly && a.Device == a.FilesystemDevice
}

// writable makes a device writable again if a read-only block volume was on it and its unstaging died.
func writable(d mount.Device) (mount.Device, error) {
	if !d.ReadOnly {
		return d, nil
	}
	if err := mount.SetReadOnly(d.Path, false); err != nil {
		return d, err
	}
	return mount.Inspect(d.Path)
}

// mounted returns the filesystem that is already staged on the path, "" when there is none.
func (s staging) mounted(d mount.Device) (fsType string, err error) {
	if info, err := os.Lstat(s.path); err == nil && !info.IsDir() || os.IsNotExist(err) {
		return "", invalid("staging_target_path", "%s is no directory; the orchestrator has to make it", s.path)
	}
	points, err := mount.At(s.path)
	if err != nil || len(points) == 0 {
		return "", err
	}
	top := points[len(points)-1]
	switch {
	case !top.Shows(d):
		return "", backingimage.Errorf(backingimage.Precondition, "%s already shows another filesystem (%s, device %d:%d) and not volume %s; unmount it there",
			s.path, top.Type, top.Device.Major, top.Device.Minor, s.volume)
	case s.fsType != "" && s.fsType != top.Type, s.readOnly != top.ReadOnly:
		return "", backingimage.Errorf(backingimage.Conflict, "volume %s is already staged on %s as %s, read-only %t; wanted is %s, read-only %t: unstage it first",
			s.volume, s.path, top.Type, top.ReadOnly, cmp.Or(s.fsType, "any filesystem"), s.readOnly)
	}
	return top.Type, nil
}

// inUse reports whether the device's filesystem is mounted somewhere. InUse when anything else has the device.
func (s staging) inUse(d mount.Device) (bool, error) {
	points, err := mount.Showing(d)
	if err != nil {
		return false, err
	}
	for _, p := range points {
		if p.Device != d.ID {
			return false, backingimage.Errorf(backingimage.InUse, "volume %s is published as a block device on %s; unpublish it there before it is used as a filesystem", s.volume, p.Path)
		}
	}
	if len(points) > 0 {
		return true, nil
	}
	return false, mount.Claimable(d.Path)
}

// Class parameters that name the filesystem where the caller leaves it out, as orchestrators without a provisioner
// sidecar do.
var fsTypeParameters = []string{"fsType", "csi.storage.k8s.io/fstype"}

func wishOf(v *v1alpha1.Volume, s staging) wish {
	w := wish{volume: s.volume, fsType: s.fsType, readOnly: s.readOnly, partition: v.Spec.Partition, source: provisioner.SourceOf(v)}
	for _, key := range fsTypeParameters {
		w.fsType = cmp.Or(w.fsType, v.Spec.Parameters[key])
	}
	if v.Spec.Image != nil {
		w.image = v.Spec.Image.Name
	}
	return w
}
