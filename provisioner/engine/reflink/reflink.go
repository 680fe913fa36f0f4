// Package reflink is the engine for disks whose filesystem can share blocks between files: XFS and btrfs.
//
// A volume is a directory with a sparse file and a record beside it that says what it is. A clone is one ioctl
// (FICLONE): the new file names the same blocks as the image's, and the filesystem copies a block when either is written. So
// its cost follows the number of the image's extents, a volume needs nothing of its image once it is made, and an
// image can be removed under its volumes. An attached volume is a loop device.
//
// A volume is made in staging and exists when its directory is renamed; what a kill leaves in staging is thrown away by the
// next attempt. See publish for what makes it survive a power loss.
//
// A snapshot is made in the same way of a volume, whose filesystems are frozen meanwhile, and is never written to. What two contents
// that do not change have in common is told by where they are on the disk; see Extents.
//
// Calls for one ID wait for each other, in this process and between processes; see lock.
package reflink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/provisioner/engine"
)

// sizeUnit is what a volume's size is rounded up to, in bytes: the smallest sector of a block device.
const sizeUnit = 512

// Options of an Engine.
type Options struct {
	// Capacity of the disk in bytes. A disk that lives in a pool knows better than its filesystem what is available: give
	// the Disk's method. The filesystem's own figures when nil.
	Capacity func() (total, available int64, err error)
}

func (o *Options) validate(l disk.Layout) {
	if o.Capacity == nil {
		o.Capacity = func() (int64, int64, error) { return statfs(string(l)) }
	}
}

// Engine is an engine.Engine on one disk.
type Engine struct {
	layout             disk.Layout
	options            Options
	busy               keyed
	volumes, snapshots shelf
}

var _ engine.Engine = (*Engine)(nil)

// New returns the engine of a disk.
func New(layout disk.Layout, o Options) *Engine {
	o.validate(layout)
	return &Engine{layout: layout, options: o, volumes: volumesOf(layout), snapshots: snapshotsOf(layout)}
}

// Capacity returns the disk's figures.
func (e *Engine) Capacity(context.Context) (engine.Capacity, error) {
	total, available, err := e.options.Capacity()
	return engine.Capacity{TotalBytes: total, AvailableBytes: available}, err
}

// explain gives an error of the filesystem the Kind that a caller can act on. It leaves errors that have one alone.
func (e *Engine) explain(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		total, available, cerr := e.options.Capacity()
		if cerr != nil {
			return backingimage.Errorf(backingimage.Full, "%s: %w: the disk has no room", doing, err)
		}
		return backingimage.Errorf(backingimage.Full, "%s: %w: the disk has %d of %d bytes available; remove volumes or images, or choose another disk", doing, err, available, total)
	case errors.Is(err, unix.EFBIG):
		return backingimage.Errorf(backingimage.OutOfRange, "%s: %w: the size is more than a file of this filesystem can have", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// roundSize returns a size rounded up to whole sectors.
func roundSize(id string, bytes int64) (int64, error) {
	if bytes <= 0 || bytes > math.MaxInt64-sizeUnit {
		return 0, backingimage.Errorf(backingimage.OutOfRange, "volume %s: a size of %d bytes cannot be: give at least 1 byte", id, bytes)
	}
	return (bytes + sizeUnit - 1) / sizeUnit * sizeUnit, nil
}

func statfs(path string) (total, available int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
