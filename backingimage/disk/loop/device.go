package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
)

// Device is a loop device that has a file.
type Device struct {
	Path         string // of its node, e.g. /dev/loop3
	BackingFile  string // as the kernel names it; " (deleted)" follows when the file is unlinked
	BackingDev   uint64 // device and inode number of the file: its identity
	BackingInode uint64
	ReadOnly     bool
	DirectIO     bool // what the kernel does, not what was asked
	SectorBytes  int
	Bytes        int64

	flags uint32
}

// errUnbound says that a device has no file, or another one than it was.
var errUnbound = errors.New("the loop device has no file any more")

// List returns the loop devices that have a file.
func List() ([]Device, error) { return list(func(*unix.LoopInfo64) bool { return true }) }

// Find returns the file's device. NotFound when there is no such file.
func Find(path string) (d Device, found bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, os.ErrNotExist) {
		return Device{}, false, backingimage.Errorf(backingimage.NotFound, "find loop device of %s: %w", path, err)
	} else if err != nil {
		return Device{}, false, fmt.Errorf("find loop device of %s: %w", path, err)
	}
	devices, err := list(func(info *unix.LoopInfo64) bool { return info.Device == st.Dev && info.Inode == st.Ino })
	if err != nil || len(devices) == 0 {
		return Device{}, false, err
	}
	return devices[0], true, nil
}

// list returns the devices that are wanted. There may be hundreds, so no more is asked of each than wanted needs.
func list(wanted func(*unix.LoopInfo64) bool) ([]Device, error) {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var found []Device
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "loop") || !bound(e.Name()) {
			continue
		}
		path, err := node(e.Name())
		if err == nil {
			err = visit(path, func(fd int, info *unix.LoopInfo64) error {
				if !wanted(info) {
					return nil
				}
				d, err := inspect(fd, info, path)
				if err == nil {
					found = append(found, d)
				}
				return err
			})
		}
		if err != nil && !errors.Is(err, errUnbound) && !errors.Is(err, os.ErrNotExist) { // since we looked
			return nil, fmt.Errorf("list loop devices: %w", err)
		}
	}
	return found, nil
}

// bound reports whether a device has a file, without opening it.
func bound(name string) bool {
	return unix.Access("/sys/block/"+name+"/loop", unix.F_OK) == nil
}

// inspectPath asks the kernel about one device. The error is errUnbound when it has no file.
func inspectPath(device string) (d Device, err error) {
	err = visit(device, func(fd int, info *unix.LoopInfo64) error {
		d, err = inspect(fd, info, device)
		return err
	})
	return d, err
}

// visit opens a device that has a file and calls f. While f runs the device cannot lose its file. The error is errUnbound when
// it has none.
func visit(device string, f func(fd int, info *unix.LoopInfo64) error) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return errUnbound
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", device, err)
	}
	defer unix.Close(fd)
	info, err := status(fd)
	if errors.Is(err, unix.ENXIO) {
		return errUnbound
	}
	if err != nil {
		return fmt.Errorf("ask the state of %s: %w", device, err)
	}
	return f(fd, info)
}

// inspect completes what the kernel said about a device.
func inspect(fd int, info *unix.LoopInfo64, device string) (d Device, err error) {
	d = Device{
		Path:         device,
		BackingDev:   info.Device,
		BackingInode: info.Inode,
		ReadOnly:     info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		DirectIO:     info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		flags:        info.Flags,
	}
	name, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	if err != nil {
		return Device{}, errUnbound
	}
	d.BackingFile = strings.TrimSuffix(string(name), "\n")
	if d.SectorBytes, err = sectorBytes(fd); err != nil {
		return Device{}, fmt.Errorf("ask the sector of %s: %w", device, err)
	}
	if d.Bytes, err = sizeBytes(fd); err != nil {
		return Device{}, fmt.Errorf("ask the size of %s: %w", device, err)
	}
	return d, nil
}

// with calls f on the device if it still has the file that d says, and errUnbound otherwise.
func (d Device) with(f func(fd int) error) error {
	err := visit(d.Path, func(fd int, info *unix.LoopInfo64) error {
		if !d.has(info) {
			return errUnbound
		}
		return f(fd)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	return nil
}

// has reports whether the kernel speaks of a device that has d's file.
func (d Device) has(info *unix.LoopInfo64) bool {
	return d.BackingDev == info.Device && d.BackingInode == info.Inode
}
