package freeze

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk/mountinfo"
)

// Limit bounds for how long a filesystem is frozen.
const Limit = 10 * time.Second

var limit = Limit // replaced in tests

// While runs work while every filesystem is frozen that is mounted here from a block device, or from a partition of it.
// Without such a filesystem, or a device (""), it just runs work. marker is the path of a file that says what is frozen
// while something is; it is for Recover.
//
// What work made counts only when While returns nil: NotReady means that a filesystem did not stay frozen all the time;
// trying again may help. work's context ends with Limit.
func While(ctx context.Context, device, marker string, work func(ctx context.Context) error) error {
	points, err := mountPoints(device)
	if err != nil {
		return fmt.Errorf("find what is mounted from %s: %w", device, err)
	}
	if len(points) == 0 {
		return work(ctx)
	}
	settle(points) // so that less is left to be written while all wait
	if err := mark(marker, points); err != nil {
		return err
	}
	g, err := startGuard(points)
	if err != nil {
		return errors.Join(err, unmark(marker))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = frozen(ctx, points, work)
	g.dismiss(ctx)
	return errors.Join(err, unmark(marker))
}

// frozen freezes, works, and thaws what it froze.
func frozen(ctx context.Context, points []string, work func(context.Context) error) (err error) {
	began := time.Now()
	var held []*os.File
	defer func() {
		for _, f := range held {
			err = errors.Join(err, thaw(f))
		}
		klog.FromContext(ctx).V(2).Info("Thawed", "points", points, "after", time.Since(began))
	}()
	for _, point := range points {
		f, err := freeze(point)
		if err != nil {
			return err
		}
		if f != nil {
			held = append(held, f)
		}
	}
	return work(ctx)
}

// freeze freezes what is mounted at a point. Without an error and without a file there is nothing to thaw: the filesystem
// cannot be frozen, or is gone, or someone else holds it frozen already.
func freeze(point string) (*os.File, error) {
	f, err := os.Open(point)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("freeze %s: %w", point, err)
	}
	err = unix.IoctlSetInt(int(f.Fd()), fiFreeze, 0)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	return nil, fmt.Errorf("freeze %s: %w", point, err)
}

// thaw closes f. It is NotReady when the filesystem was not frozen any more.
func thaw(f *os.File) error {
	defer f.Close()
	err := unix.IoctlSetInt(int(f.Fd()), fiThaw, 0)
	if errors.Is(err, unix.EINVAL) {
		return backingimage.Errorf(backingimage.NotReady, "the filesystem at %s did not stay frozen: it was thawed after %s, or by someone else; it is tried again", f.Name(), limit)
	}
	if err != nil {
		return fmt.Errorf("thaw %s: %w", f.Name(), err)
	}
	return nil
}

// Ioctls of linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// settle writes out what the filesystems have to write. It is a wish: freezing does it again.
func settle(points []string) {
	for _, point := range points {
		if f, err := os.Open(point); err == nil {
			_ = unix.Syncfs(int(f.Fd()))
			f.Close()
		}
	}
}

// mountPoints are where filesystems can be frozen that are mounted from a device or its partitions: one point for each.
func mountPoints(device string) ([]string, error) {
	if device == "" {
		return nil, nil
	}
	partitions, err := filepath.Glob(device + "p[0-9]*")
	if err != nil {
		return nil, err
	}
	var points []string
	for _, d := range append([]string{device}, partitions...) {
		mounts, err := mountinfo.Of(d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			if !m.ReadOnly {
				points = append(points, m.Point)
				break
			}
		}
	}
	return points, nil
}
