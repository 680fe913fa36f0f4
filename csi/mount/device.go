package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
)

// DeviceID is the number by which the kernel knows a device.
type DeviceID struct{ Major, Minor uint32 }

// Device is a block device.
type Device struct {
	Path     string
	ID       DeviceID
	Bytes    int64
	ReadOnly bool

	nodeOn DeviceID // the filesystem that holds the device node, usually /dev
}

// Inspect describes a block device. NotFound when there is none at path.
func Inspect(path string) (Device, error) {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return Device{}, backingimage.Errorf(backingimage.NotFound, "there is no device %s", path)
	}
	if err != nil {
		return Device{}, fmt.Errorf("inspect device: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Device{}, fmt.Errorf("inspect device %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Device{}, backingimage.Errorf(backingimage.NotFound, "%s is not a block device", path)
	}
	d := Device{Path: path, ID: numberOf(st.Rdev), nodeOn: numberOf(st.Dev)}
	if d.Bytes, err = sizeOf(f); err != nil {
		return Device{}, err
	}
	ro, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	if err != nil {
		return Device{}, fmt.Errorf("inspect device %s: BLKROGET: %w", path, err)
	}
	d.ReadOnly = ro != 0
	return d, nil
}

// SetReadOnly makes the kernel refuse writes to a device, or accept them again, for everyone who has it open.
func SetReadOnly(path string, readOnly bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("set %s read-only %t: %w", path, readOnly, err)
	}
	defer f.Close()
	value := 0
	if readOnly {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value); err != nil {
		return fmt.Errorf("set %s read-only %t: %w", path, readOnly, err)
	}
	return nil
}

// Claimable returns InUse when a filesystem or a program holds the device exclusively, as mounts, mkfs and fsck do.
func Claimable(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err == unix.EBUSY {
		return backingimage.Errorf(backingimage.InUse, "%s is held by another mount or program; wait for it to end, or unmount it", path)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	return unix.Close(fd)
}

// resides reports whether a mount's root is this device's node, which is how a device is bound onto a file.
func (d Device) resides(p Point) bool {
	return p.Device == d.nodeOn && filepath.Base(p.Root) == filepath.Base(d.Path)
}

func numberOf(dev uint64) DeviceID { return DeviceID{unix.Major(dev), unix.Minor(dev)} }

func sizeOf(f *os.File) (int64, error) {
	var bytes uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&bytes))); errno != 0 {
		return 0, fmt.Errorf("read size of device %s: %w", f.Name(), errno)
	}
	return int64(bytes), nil
}
