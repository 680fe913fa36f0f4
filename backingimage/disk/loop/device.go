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
func List() ([]Device, error) {
	bound, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	var list []Device
	for _, file := range bound {
		name := strings.Split(file, "/")[3]
		d, err := Inspect(filepath.Join(devices, name))
		if errors.Is(err, errUnbound) {
			continue // since we looked
		}
		if err != nil {
			return nil, fmt.Errorf("list loop devices: %w", err)
		}
		list = append(list, d)
	}
	return list, nil
}

// Find returns the file's device. NotFound when there is no such file.
func Find(path string) (d Device, found bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); errors.Is(err, os.ErrNotExist) {
		return Device{}, false, backingimage.Errorf(backingimage.NotFound, "find loop device of %s: %w", path, err)
	} else if err != nil {
		return Device{}, false, fmt.Errorf("find loop device of %s: %w", path, err)
	}
	list, err := List()
	if err != nil {
		return Device{}, false, err
	}
	for _, d := range list {
		if d.BackingDev == st.Dev && d.BackingInode == st.Ino {
			return d, true, nil
		}
	}
	return Device{}, false, nil
}

// Inspect asks the kernel about one device, by its path. The error is errUnbound when it has no file.
func Inspect(device string) (Device, error) {
	if _, err := node(filepath.Base(device)); err != nil {
		return Device{}, err
	}
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) {
		return Device{}, errUnbound
	}
	if err != nil {
		return Device{}, fmt.Errorf("open %s: %w", device, err)
	}
	defer unix.Close(fd)
	return inspect(fd, device)
}

func inspect(fd int, device string) (Device, error) {
	info, err := status(fd)
	if errors.Is(err, unix.ENXIO) {
		return Device{}, errUnbound
	}
	if err != nil {
		return Device{}, fmt.Errorf("ask the state of %s: %w", device, err)
	}
	d := Device{
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

// with opens the device, makes sure that it still has d's file, and calls f. While f runs the device cannot lose it.
func (d Device) with(f func(fd int) error) error {
	fd, err := unix.Open(d.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.Path, err)
	}
	defer unix.Close(fd)
	now, err := inspect(fd, d.Path)
	if err == nil && !now.same(d) {
		err = errUnbound
	}
	if err == nil {
		err = f(fd)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	return nil
}

func (d Device) same(other Device) bool {
	return d.BackingDev == other.BackingDev && d.BackingInode == other.BackingInode
}
