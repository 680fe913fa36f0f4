package loop

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
)

// Detach waits about a second for openers that come and go by themselves: blkid and udev look at each new or changed device.
const (
	detachAttempts = 25
	longestPause   = 50 * time.Millisecond
)

// Detach removes the device if it still has the file that d says; otherwise there is nothing to do. See the function of
// the same name.
func (d Device) Detach(ctx context.Context) error {
	pause := time.Millisecond
	for range detachAttempts {
		gone, err := d.tryDetach()
		if err != nil {
			return fmt.Errorf("detach %s from %s: %w", d.BackingFile, d.Path, err)
		}
		if gone {
			klog.FromContext(ctx).V(2).Info("Detached loop device", "device", d.Path, "file", d.BackingFile)
			return nil
		}
		if holder := claim(d.Path); holder != "" { // that does not pass by itself
			return d.inUse(holder)
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("detach %s from %s: %w", d.BackingFile, d.Path, err)
		}
		pause = min(2*pause, longestPause)
	}
	return d.inUse(opener(d.Path))
}

func (d Device) inUse(holder string) error {
	return backingimage.Errorf(backingimage.InUse, "%s is attached as %s, which is %s: release it first", d.BackingFile, d.Path, holder)
}

// tryDetach unbinds the device unless someone else has it open.
//
// LOOP_CLR_FD never refuses: on a device that others have open it sets autoclear and answers success, and the device
// vanishes at some later time under a caller who was told that it stays. So the device is opened exclusively first, which
// fails while a filesystem or another device holds it; and if the kernel then still finds a plain opener, the flag is
// taken back while our own descriptor keeps the device from going.
func (d Device) tryDetach() (gone bool, err error) {
	fd, err := unix.Open(d.Path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return false, nil
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENOENT):
		return true, nil
	case err != nil:
		return false, err
	}
	cleared, err := d.clear(fd)
	unix.Close(fd) // this is what unbinds it
	if err != nil || !cleared {
		return false, err
	}
	// A child that is about to exec may hold a copy of our descriptor for a moment.
	err = d.with(func(int) error { return nil })
	if errors.Is(err, errUnbound) {
		return true, nil
	}
	return false, err
}

// clear reports whether the device will have lost its file when fd is closed.
func (d Device) clear(fd int) (bool, error) {
	info, err := status(fd)
	if errors.Is(err, unix.ENXIO) || err == nil && !d.has(info) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if err := unbind(fd); err != nil && !errors.Is(err, unix.ENXIO) {
		return false, err
	}
	if _, err := status(fd); errors.Is(err, unix.ENXIO) {
		return true, makeWritable(fd)
	}
	return false, setFlags(fd, info.Flags&^unix.LO_FLAGS_AUTOCLEAR)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
