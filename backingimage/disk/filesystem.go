package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
)

var ficlone = unix.IoctlFileClone // replaced in tests

// needsPool decides whether the disk in dir lives in a pool. A pool that exists decides by itself; otherwise the
// filesystem is asked by trying. A disk that was made directly in dir must find a filesystem that can reflink again.
func needsPool(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, poolFile))
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	_, err = os.Stat(Layout(dir).identityFile())
	exists := err == nil
	can, err := canReflink(dir)
	if exists && (errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM)) {
		return false, nil // what is on it can be used, and Healthy says what is wrong
	}
	if err != nil || can {
		return false, err
	}
	if exists {
		return false, backingimage.Errorf(backingimage.Precondition, "%s holds a disk that was made on a filesystem that can reflink, and %s cannot: mount the disk's own filesystem there, or give an empty directory", dir, filesystemOf(dir))
	}
	return true, nil
}

// canReflink clones one nameless file into another: filesystems of one type differ in it, so only trying tells. XFS and btrfs
// have nameless files; a filesystem without them counts as one that cannot reflink.
func canReflink(dir string) (bool, error) {
	source, err := nameless(dir)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("try whether %s can reflink: %w", dir, err)
	}
	defer source.Close()
	target, err := nameless(dir)
	if err != nil {
		return false, fmt.Errorf("try whether %s can reflink: %w", dir, err)
	}
	defer target.Close()
	if _, err := source.Write(make([]byte, 64<<10)); err != nil {
		return false, fmt.Errorf("try whether %s can reflink: %w", dir, err)
	}
	err = ficlone(int(target.Fd()), int(source.Fd()))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS):
		return false, nil
	}
	return false, fmt.Errorf("try whether %s can reflink: %w", dir, err)
}

// nameless makes a file that no kill can leave behind.
func nameless(dir string) (*os.File, error) {
	return os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
}

// filesystemOf returns the name of the filesystem at a path, or its magic number.
func filesystemOf(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "unknown"
	}
	switch int64(st.Type) {
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	}
	return fmt.Sprintf("%#x", st.Type)
}

// space of the filesystem at a path, in bytes.
func space(path string) (total, available, used int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, 0, fmt.Errorf("ask the free space of %s: %w", path, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

// Capacity returns the disk's size and what can still be written to it, in bytes. A pool can be larger than the room
// that the filesystem below has for it: what is available is the smaller of the two.
func (d *Disk) Capacity() (total, available int64, err error) {
	total, available, used, err := space(string(d.layout))
	if err != nil || d.pool == nil {
		return total, available, err
	}
	below, err := d.pool.below(used)
	if err != nil {
		return 0, 0, err
	}
	return total, min(available, below), nil
}
