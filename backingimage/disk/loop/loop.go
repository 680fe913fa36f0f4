// Package loop makes block devices of files, by the kernel's loop driver.
//
// A device is named by its backing file everywhere here, never by its number: numbers are reused the moment a device
// is gone, files are not. Which device belongs to a file is asked of the kernel each time, by the file's device and
// inode number, so that a restart, another process or a hand-made losetup find the same answer. Changes for one file
// exclude each other, between processes too, by a flock on the file.
//
// Decisions:
//
//   - Direct I/O. The file's content is cached once, by the filesystem on the device, and a flush of the device is a
//     flush of the disk. Where the filesystem below refuses, the device is buffered and the log says so.
//   - Sectors of 512 bytes unless asked otherwise. Partition tables inside images count in sectors of the disk they were
//     made on, and that is 512 for practically every published image; a device with 4096 would show another
//     table, or none. 4096 is for volumes whose content was made for it. Direct I/O needs sectors no smaller than what the
//     filesystem below takes: on a disk of native 4096-byte sectors, and on an XFS for a file that shares extents with
//     another, devices with 512 are buffered.
//   - No autoclear: a device outlives the process that made it, because a volume in use must survive our restart.
//   - Partitions are found by the kernel where it can, and by us where it was built without parsers for their tables.
//   - Discard needs no asking: the driver offers it when the filesystem below can punch holes.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
)

// DefaultSectorBytes is the logical sector of a device that asks for none.
const DefaultSectorBytes = 512

// Options of a device.
type Options struct {
	ReadOnly    bool
	SectorBytes int  // logical sector: 512 (the default) or 4096
	Partitions  bool // scan the partition table: partition n is then the device's path + "p" + n
}

func (o *Options) validate() error {
	switch o.SectorBytes {
	case 0:
		o.SectorBytes = DefaultSectorBytes
	case 512, 4096:
	default:
		return backingimage.Errorf(backingimage.Invalid, "SectorBytes is %d: a loop device has sectors of 512 or 4096 bytes", o.SectorBytes)
	}
	return nil
}

// Attach makes a block device of the file and returns its path. A file that has one keeps it: Attach then only brings
// the device's size up to the file's. Conflict when that device is read-only or has a sector that was not asked for;
// NotFound when there is no file; Invalid when the file's size is no multiple of the sector.
func Attach(ctx context.Context, path string, o Options) (device string, err error) {
	if err := o.validate(); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, path)
	if errors.Is(err, os.ErrNotExist) {
		return "", backingimage.Errorf(backingimage.NotFound, "attach loop device: %w", err)
	}
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", path, err)
	}
	defer unlock()
	d, found, err := Find(path)
	switch {
	case err != nil:
		return "", err
	case found:
		err = d.adopt(o)
	default:
		d, err = create(ctx, path, o)
	}
	if err == nil && o.Partitions {
		err = d.showPartitions()
	}
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", path, err)
	}
	return d.Path, nil
}

// Detach removes the file's device. A file without a device, or no such file, is success. InUse when the device stays mounted or
// held open; the message names by what. A busy device is left exactly as it was.
func Detach(ctx context.Context, path string) error {
	unlock, err := lock(ctx, path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", path, err)
	}
	defer unlock()
	d, found, err := Find(path)
	if err != nil || !found {
		return err
	}
	return d.Detach(ctx)
}

// Refresh brings the size of the file's device up to the file's. A file without a device is success.
func Refresh(path string) error {
	d, found, err := Find(path)
	if err != nil || !found {
		return err
	}
	return d.with(func(fd int) error { return setCapacity(fd) })
}

// adopt makes an existing device serve the wish o, or says why it cannot.
func (d Device) adopt(o Options) error {
	if d.ReadOnly != o.ReadOnly {
		return backingimage.Errorf(backingimage.Conflict, "%s is attached as %s with read-only %t, not %t: detach it first", d.BackingFile, d.Path, d.ReadOnly, o.ReadOnly)
	}
	if d.SectorBytes != o.SectorBytes {
		return backingimage.Errorf(backingimage.Conflict, "%s is attached as %s with sectors of %d bytes, not %d: detach it first", d.BackingFile, d.Path, d.SectorBytes, o.SectorBytes)
	}
	if err := d.with(func(fd int) error { return d.bringUp(fd, o) }); err != nil {
		return err
	}
	return nil
}

// bringUp sets what may change on a bound device: no autoclear (a killed Detach leaves it), partitions, size.
func (d Device) bringUp(fd int, o Options) error {
	flags := d.flags &^ unix.LO_FLAGS_AUTOCLEAR
	if o.Partitions {
		flags |= unix.LO_FLAGS_PARTSCAN
	}
	if flags != d.flags {
		if err := setFlags(fd, flags); err != nil {
			return err
		}
	}
	return setCapacity(fd)
}

// create binds the file to the next free device.
func create(ctx context.Context, path string, o Options) (Device, error) {
	file, err := openBacking(path, o)
	if err != nil {
		return Device{}, err
	}
	defer file.Close() // the driver keeps its own reference
	for {
		device, err := bindFree(file, o)
		if err == nil {
			return announce(ctx, device)
		}
		// Another process took the device between our asking and our binding.
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return Device{}, err
		}
		if ctx.Err() != nil {
			return Device{}, ctx.Err()
		}
	}
}

// announce says in the log what a new device is. That it is buffered is said here and so only once.
func announce(ctx context.Context, device string) (Device, error) {
	d, err := inspectPath(device)
	if err != nil {
		return Device{}, err
	}
	klog.FromContext(ctx).V(2).Info("Attached loop device", "device", d.Path, "file", d.BackingFile)
	if !d.DirectIO {
		klog.FromContext(ctx).Info("Loop device is buffered: the filesystem below refuses direct I/O", "device", d.Path, "file", d.BackingFile, "sectorBytes", d.SectorBytes)
	}
	return d, nil
}

func openBacking(path string, o Options) (*os.File, error) {
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size()%int64(o.SectorBytes) != 0 {
		err = backingimage.Errorf(backingimage.Invalid, "the size of %d bytes is no multiple of the sector of %d bytes: grow the file, or choose a smaller sector", info.Size(), o.SectorBytes)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// bindFree asks for a free device and binds the file to it.
func bindFree(file *os.File, o Options) (device string, err error) {
	number, err := freeNumber()
	if err != nil {
		return "", err
	}
	device, err = node(fmt.Sprintf("loop%d", number))
	if err != nil {
		return "", err
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", device, err)
	}
	defer unix.Close(fd)
	if err := bind(fd, file, o); err != nil {
		return "", fmt.Errorf("bind %s: %w", device, err)
	}
	if err := makeWritable(fd); err != nil { // what is to be read-only is by the flags of its binding
		return "", errors.Join(fmt.Errorf("bind %s: %w", device, err), unbind(fd))
	}
	return device, nil
}
