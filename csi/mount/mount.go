package mount

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
)

// Filesystem mounts a device's ext4 or XFS on the directory target, which must exist. XFS is mounted nouuid: clones of one
// image carry one UUID. With the option ro on a device that refuses writes, the journal is left alone.
func Filesystem(ctx context.Context, d Device, target, fsType string, options []string) error {
	options = append(required(d, fsType, slices.Contains(options, "ro")), options...)
	args := []string{"-t", fsType}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	if _, err := command.Run(ctx, "mount", append(args, d.Path, target)...); err != nil {
		return fmt.Errorf("mount %s of %s on %s: %w", fsType, d.Path, target, err)
	}
	return nil
}

func required(d Device, fsType string, readOnly bool) []string {
	var options []string
	if fsType == XFS {
		options = append(options, "nouuid")
	}
	if readOnly && d.ReadOnly {
		options = append(options, map[string]string{XFS: "norecovery", Ext4: "noload"}[fsType])
	}
	return options
}

// Bind shows source, a directory or a device node, at target, which must exist and be of the same sort. It appears
// there read-only or not at all. Unsupported before Linux 5.12.
func Bind(source, target string, readOnly bool) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return bindError(source, target, "open_tree", err)
	}
	defer unix.Close(tree)
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return bindError(source, target, "mount_setattr", err)
		}
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return bindError(source, target, "move_mount", err)
	}
	return nil
}

func bindError(source, target, call string, err error) error {
	if errors.Is(err, unix.ENOSYS) {
		return backingimage.Errorf(backingimage.Unsupported, "bind %s on %s: this kernel has no %s; use Linux 5.12 or later", source, target, call)
	}
	return fmt.Errorf("bind %s on %s: %s: %w", source, target, call, err)
}

// Unmount takes away everything that is mounted on path; nothing mounted, or no such path, is success. InUse while a
// process has files open there.
func Unmount(path string) error {
	points, err := At(path)
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(points) {
		err := unix.Unmount(p.Path, unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EBUSY):
			return backingimage.Errorf(backingimage.InUse, "unmount %s: a process has files open there; end it and try again", p.Path)
		case errors.Is(err, unix.EINVAL): // someone else unmounted it
		case err != nil:
			return fmt.Errorf("unmount %s: %w", p.Path, err)
		}
	}
	return nil
}
