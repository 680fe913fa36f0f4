package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/disk/mountinfo"
	"plinth.dev/plinth/backingimage/durable"
)

// Names in the directory of a disk that lives in a pool.
const (
	poolFile  = "pool.xfs" // the filesystem
	poolMount = "pool"     // where it is mounted: the root of the disk's layout
)

// MinPoolBytes is the smallest pool: mkfs.xfs refuses less than 300 MB, and a log takes 64 MiB of it.
const MinPoolBytes = 512 << 20

// pool is an XFS filesystem in a sparse file.
//
// Mount options: noatime, because nobody asks; nosuid, nodev and noexec, because images are hostile; discard, because the pool
// shares its filesystem with others, and what a deleted image frees must go back to them; logbsize=256k, the largest,
// because a clone of many extents waits for as many log writes as it fills buffers. The mount is private: what is mounted in it,
// by mistake, appears nowhere else.
type pool struct {
	file  string
	mount string
}

// openPool brings the pool of a disk's directory up: made, grown, attached and mounted, each only when it is not yet.
func openPool(ctx context.Context, dir string, wanted int64) (*pool, error) {
	p := &pool{file: filepath.Join(dir, poolFile), mount: filepath.Join(dir, poolMount)}
	if err := os.MkdirAll(p.mount, 0o700); err != nil {
		return nil, err
	}
	steps := []func(context.Context, int64) error{p.make, p.grow, p.attachAndMount, p.growFilesystem}
	for _, step := range steps {
		if err := step(ctx, wanted); err != nil {
			return p, err
		}
	}
	return p, nil
}

// make makes the pool file unless it exists. It gets its name when it is complete and on disk.
func (p *pool) make(ctx context.Context, wanted int64) error {
	if _, err := os.Stat(p.file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if m, mounted, err := mountinfo.At(p.mount); err != nil {
		return err
	} else if mounted {
		return backingimage.Errorf(backingimage.Precondition, "%s is gone but %s is still mounted on %s: copy what is in it, unmount it, and open the disk again", p.file, m.Source, p.mount)
	}
	if entries, err := os.ReadDir(p.mount); err != nil {
		return err
	} else if len(entries) > 0 {
		return backingimage.Errorf(backingimage.Precondition, "a pool is needed in %s, but its mount point %s is not empty: move its content away", filepath.Dir(p.file), p.mount)
	}
	size, err := poolSize(filepath.Dir(p.file), wanted)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Making a pool, because the directory cannot reflink", "file", p.file, "bytes", size)
	temporary := p.file + ".new"
	if err := format(ctx, temporary, size); err != nil {
		return err
	}
	return durable.Rename(temporary, p.file)
}

// poolSize is the size of a new pool in dir.
func poolSize(dir string, wanted int64) (int64, error) {
	if wanted > 0 {
		return wanted &^ (1<<20 - 1), nil
	}
	_, available, _, err := space(dir)
	if err != nil {
		return 0, err
	}
	size := available / 10 * 8 &^ (1<<20 - 1)
	if size < MinPoolBytes {
		return 0, backingimage.Errorf(backingimage.Full, "%s (%s) cannot reflink, so a pool is needed, and 80 %% of its %d free bytes are less than the %d (512 MiB) that a pool takes at least: free some space, set the pool size (PoolBytes), or give a directory on XFS or btrfs", dir, filesystemOf(dir), available, int64(MinPoolBytes))
	}
	return size, nil
}

// format makes an XFS filesystem in a new sparse file and syncs it. Without the reverse map a clone writes half as many metadata
// records; sectors of 512 bytes let volumes with such sectors use direct I/O.
func format(ctx context.Context, file string, size int64) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return fmt.Errorf("make pool: %w", err)
	}
	if _, err := command.Run(ctx, "mkfs.xfs", "-q", "-f", "-K", "-s", "size=512", "-m", "crc=1,reflink=1,rmapbt=0", "-L", "plinth", file); err != nil {
		return fmt.Errorf("make pool: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("make pool: %w", err)
	}
	return nil
}

// grow makes the pool file as large as wanted; the filesystem follows in growFilesystem.
func (p *pool) grow(ctx context.Context, wanted int64) error {
	info, err := os.Stat(p.file)
	if err != nil {
		return err
	}
	size := wanted &^ (1<<20 - 1)
	if wanted == 0 || size == info.Size() {
		return nil
	}
	if size < info.Size() {
		klog.FromContext(ctx).Info("The pool is larger than asked and cannot shrink; its size stays", "file", p.file, "bytes", info.Size(), "asked", size)
		return nil
	}
	klog.FromContext(ctx).Info("Growing the pool", "file", p.file, "from", info.Size(), "to", size)
	if err := os.Truncate(p.file, size); err != nil {
		return fmt.Errorf("grow pool: %w", err)
	}
	return nil
}

// attachAndMount adopts the device and the mount that exist. Attach also shows the device the file's new size.
func (p *pool) attachAndMount(ctx context.Context, _ int64) error {
	if _, err := p.filesystemBytes(); err != nil {
		return err
	}
	device, err := loop.Attach(ctx, p.file, loop.Options{})
	if err != nil {
		return err
	}
	mounted, err := p.mounted(device)
	if err != nil || mounted {
		return err
	}
	return mountPool(device, p.mount)
}

// mounted reports whether the device is mounted where it should be. Precondition when something else is.
func (p *pool) mounted(device string) (bool, error) {
	m, mounted, err := mountinfo.At(p.mount)
	if err != nil || !mounted {
		return false, err
	}
	ours, err := mountinfo.Of(device)
	if err != nil {
		return false, err
	}
	if !slices.Contains(ours, m) {
		return false, backingimage.Errorf(backingimage.Precondition, "%s should show the pool %s, but %s (%s) is mounted there: unmount it", p.mount, p.file, m.Source, m.Type)
	}
	return true, nil
}

func mountPool(device, dir string) error {
	err := unix.Mount(device, dir, "xfs", unix.MS_NOATIME|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "discard,logbsize=256k")
	if errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EBADMSG) {
		return backingimage.Errorf(backingimage.Corrupt, "mount pool %s on %s: %w: look at the kernel's log and repair it with xfs_repair", device, dir, err)
	}
	if errors.Is(err, unix.ENODEV) {
		return backingimage.Errorf(backingimage.Unsupported, "mount pool %s on %s: the kernel has no XFS: load its module, or give a directory on btrfs", device, dir)
	}
	if err != nil {
		return fmt.Errorf("mount pool %s on %s: %w", device, dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mount %s private: %w", dir, err)
	}
	return nil
}

// growFilesystem brings the filesystem up to the file's size, after a grow now or one that was killed half-way.
func (p *pool) growFilesystem(ctx context.Context, _ int64) error {
	has, err := p.filesystemBytes()
	if err != nil {
		return err
	}
	info, err := os.Stat(p.file)
	if err != nil {
		return err
	}
	if info.Size()-has < 1<<20 {
		return nil
	}
	if _, err := command.Run(ctx, "xfs_growfs", "-d", p.mount); err != nil {
		return fmt.Errorf("grow pool: %w", err)
	}
	return nil
}

// filesystemBytes reads the size that the filesystem has from the head of its superblock (struct xfs_dsb in the kernel): magic,
// block size and data blocks, big-endian.
func (p *pool) filesystemBytes() (int64, error) {
	f, err := os.Open(p.file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var head struct {
		Magic  [4]byte
		Block  uint32
		Blocks uint64
	}
	if err := binary.Read(f, binary.BigEndian, &head); err != nil || string(head.Magic[:]) != "XFSB" {
		return 0, backingimage.Errorf(backingimage.Corrupt, "%s is not an XFS filesystem: restore it, or move it away to begin an empty disk", p.file)
	}
	return int64(head.Blocks) * int64(head.Block), nil
}

// below returns how much can be written to the pool before the filesystem below it is full: what that has free, and
// what the file holds without the pool using it.
func (p *pool) below(used int64) (int64, error) {
	_, available, _, err := space(filepath.Dir(p.file))
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(p.file, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: p.file, Err: err}
	}
	return available + max(0, st.Blocks*512-used), nil
}

// close unmounts the pool and frees its device. InUse when something is attached or open in it; then it stays.
func (p *pool) close(ctx context.Context) error {
	device, attached, err := loop.Find(p.file)
	if backingimage.Is(err, backingimage.NotFound) || err == nil && !attached {
		return nil
	}
	if err != nil {
		return err
	}
	mounted, err := p.mounted(device.Path)
	if err != nil && !backingimage.Is(err, backingimage.Precondition) { // another's mount is not ours to remove
		return err
	}
	if mounted {
		if err := unix.Unmount(p.mount, 0); errors.Is(err, unix.EBUSY) {
			return backingimage.Errorf(backingimage.InUse, "%s has attached volumes or open files", p.mount)
		} else if err != nil {
			return fmt.Errorf("unmount %s: %w", p.mount, err)
		}
	}
	return loop.Detach(ctx, p.file)
}
