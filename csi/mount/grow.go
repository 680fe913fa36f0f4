package mount

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
)

// Exit codes of e2fsck, which are bits.
const (
	e2fsckUncorrected = 4
	e2fsckOperational = 8
)

// Check replays the journal of an ext4 that is not mounted and mends what can be mended without asking; a clean one
// costs milliseconds. XFS does this when it is mounted. Corrupt when a person has to look. It is not ended by ctx.
func Check(ctx context.Context, d Device, fsType string) error {
	if fsType != Ext4 {
		return nil
	}
	return e2fsck(ctx, d.Path)
}

func e2fsck(ctx context.Context, device string, options ...string) error {
	_, err := command.Run(context.WithoutCancel(ctx), "e2fsck", append(append([]string{"-p"}, options...), device)...)
	code := command.ExitCode(err)
	switch {
	case err == nil || code > 0 && code < e2fsckUncorrected:
		return nil
	case code&e2fsckUncorrected != 0 && code < 2*e2fsckOperational:
		return backingimage.Errorf(backingimage.Corrupt, "the ext4 on %s has damage that is not mended without asking; repair it with e2fsck through a volumeMode Block pod: %w", device, err)
	}
	return fmt.Errorf("check %s: %w", device, err)
}

// GrowUnmounted grows an ext4 that is not mounted to its device's size, where that gains anything. Other filesystems are
// left to GrowMounted. It is not ended by ctx.
func GrowUnmounted(ctx context.Context, d Device, fsType string) error {
	if fsType != Ext4 {
		return nil
	}
	sb, err := readSuperblock(d.Path, fsType)
	if err != nil || !sb.gains(d) {
		return err
	}
	if sb.needsCheck {
		if err := e2fsck(ctx, d.Path, "-f"); err != nil {
			return err
		}
	}
	if _, err := command.Run(context.WithoutCancel(ctx), "resize2fs", d.Path); err != nil {
		return fmt.Errorf("grow the ext4 on %s: %w", d.Path, err)
	}
	klog.FromContext(ctx).V(2).Info("Filesystem grown", "device", d.Path, "type", fsType, "from", sb.bytes, "to", d.Bytes)
	return nil
}

// GrowMounted grows the filesystem of a device that is mounted, writable, on path, where that gains anything.
// Precondition when the kernel does not allow it to this process; GrowUnmounted can then do it before the next mount.
func GrowMounted(ctx context.Context, d Device, path, fsType string) error {
	// What a mounted XFS has on disk may be behind, which only means that xfs_growfs is asked in vain.
	sb, err := readSuperblock(d.Path, fsType)
	if err != nil || !sb.gains(d) {
		return err
	}
	if fsType == XFS {
		_, err = command.Run(ctx, "xfs_growfs", "-d", path)
	} else {
		_, err = command.Run(context.WithoutCancel(ctx), "resize2fs", d.Path)
		if err != nil && !capable(unix.CAP_SYS_RESOURCE) {
			return backingimage.Errorf(backingimage.Precondition, "grow the mounted ext4 on %s: this process lacks CAP_SYS_RESOURCE; "+
				"give it that capability, or stop using the volume on this node: it is grown when it is staged again (%w)", d.Path, err)
		}
	}
	if err != nil {
		return fmt.Errorf("grow the mounted %s on %s: %w", fsType, path, err)
	}
	klog.FromContext(ctx).V(2).Info("Filesystem grown while mounted", "device", d.Path, "type", fsType, "to", d.Bytes)
	return nil
}

// capable reports whether this process has a capability in its effective set.
func capable(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}
