package loop

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
)

// What the kernel is asked, one function for each question; see loop(4). Replaced in tests where a variable says so.

var configure = unix.IoctlLoopConfigure // replaced in tests

// bind makes the file the device's content, in one step (LOOP_CONFIGURE, Linux 5.8): no other process ever sees a
// device that has the file but not yet its options. The kernel takes direct I/O as a wish and drops it in silence.
func bind(fd int, file *os.File, o Options) error {
	c := &unix.LoopConfig{Fd: uint32(file.Fd()), Size: uint32(o.SectorBytes)}
	c.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	if o.ReadOnly {
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if o.Partitions {
		c.Info.Flags |= unix.LO_FLAGS_PARTSCAN
	}
	copy(c.Info.File_name[:len(c.Info.File_name)-1], file.Name()) // what losetup shows
	err := configure(fd, c)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		return backingimage.Errorf(backingimage.Unsupported, "the kernel refuses LOOP_CONFIGURE (%w): Linux 5.8 or newer is needed", err)
	}
	return err
}

// makeWritable takes back that somebody made the device read-only (BLKROSET). That outlives what the device was bound to: whoever
// gets the device next could not write to it, or mount it.
func makeWritable(fd int) error {
	if err := unix.IoctlSetPointerInt(fd, unix.BLKROSET, 0); err != nil {
		return fmt.Errorf("make loop device writable: %w", err)
	}
	return nil
}

// freeNumber returns the number of a device that was free a moment ago.
func freeNumber() (int, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return 0, backingimage.Errorf(backingimage.Unsupported, "no loop devices here (%w): load the loop module, run as root, and give a container /dev/loop-control", err)
	}
	defer control.Close()
	number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return 0, fmt.Errorf("ask for a free loop device: %w", err)
	}
	return number, nil
}

// status of a bound device; unix.ENXIO when it is not bound, or about to be unbound.
func status(fd int) (*unix.LoopInfo64, error) { return unix.IoctlLoopGetStatus64(fd) }

// setFlags changes the flags that may change on a bound device: autoclear off, partition scan on.
func setFlags(fd int, flags uint32) error {
	info, err := status(fd)
	if err != nil {
		return fmt.Errorf("set loop flags: %w", err)
	}
	info.Flags = flags
	if err := unix.IoctlLoopSetStatus64(fd, info); err != nil {
		return fmt.Errorf("set loop flags: %w", err)
	}
	return nil
}

func setCapacity(fd int) error {
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("bring loop device to its file's size: %w", err)
	}
	return nil
}

// addPartition makes the kernel know a partition. It refuses with EINVAL what is not on the device, with EBUSY what overlaps.
func addPartition(fd int, p partition) error {
	data := blkpgPartition{Start: p.offset, Length: p.size, Number: int32(p.number)}
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(data)), Data: (*byte)(unsafe.Pointer(&data))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(&data)
	if errno != 0 {
		return errno
	}
	return nil
}

// blkpgPartition is struct blkpg_partition of linux/blkpg.h.
type blkpgPartition struct {
	Start, Length int64
	Number        int32
	_             [64 + 64 + 4]byte // names, which the kernel does not use
}

// unbind asks the kernel to unbind the device when its last opener closes it.
func unbind(fd int) error { return unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0) }

func sectorBytes(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.BLKSSZGET) }

// sizeBytes returns a block device's size.
func sizeBytes(fd int) (int64, error) {
	var size uint64
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, errno
	}
	return int64(size), nil
}

// deviceNumber of a block device, by its name in sysfs.
func deviceNumber(name string) (uint64, error) {
	text, err := os.ReadFile("/sys/class/block/" + name + "/dev")
	if err != nil {
		return 0, err
	}
	major, minor, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("parse device number of %s: %w", name, err)
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("parse device number of %s: %w", name, err)
	}
	return unix.Mkdev(uint32(a), uint32(b)), nil
}
