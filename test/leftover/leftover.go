// Package leftover finds what a process of Plinth's left in the kernel when it was killed, by the directory that
// everything of it lies in: mounts, and loop devices on files. What belongs to another directory is never touched.
package leftover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// longest is more than Release pauses between two rounds.
const longest = 5 * time.Second

// Release unmounts everything below dir, and everything whose device is a loop device on a file below dir, and removes
// those loop devices. dir must be free of symbolic links, as the kernel reports paths. A volume's file lies in a pool that is itself mounted
// from a file below dir, hence the rounds; and a device goes a moment later when somebody else just looks at it, hence the pauses.
func Release(dir string) error {
	var last error
	for pause := time.Millisecond; pause < longest; pause *= 2 {
		loops, err := loopsOn(dir)
		if err != nil {
			return err
		}
		mounts, err := mountsOf(dir, loops)
		if err != nil {
			return err
		}
		if len(loops)+len(mounts) == 0 {
			return nil
		}
		last = releaseOnce(dir, mounts, loops)
		time.Sleep(pause)
	}
	return errors.Join(errors.New("mounts or loop devices remain"), last)
}

func releaseOnce(dir string, mounts, loops []string) error {
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(mounts[i], 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", mounts[i], err))
		}
	}
	for _, device := range loops {
		if err := detach(device, dir); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", device, err))
		}
	}
	return errors.Join(errs...)
}

// loopsOn returns the loop devices on files below dir.
func loopsOn(dir string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var devices []string
	for _, f := range files {
		if backedBelow(f, dir) {
			devices = append(devices, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return devices, nil
}

// backedBelow reads a loop device's backing_file; a device that was detached meanwhile has none.
func backedBelow(sysfs, dir string) bool {
	b, err := os.ReadFile(sysfs)
	return err == nil && strings.HasPrefix(string(b), dir+"/")
}

// detach removes a loop device, unless it has become somebody else's: while it is open here, it cannot.
func detach(device, dir string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if !backedBelow(filepath.Join("/sys/block", filepath.Base(device), "loop", "backing_file"), dir) {
		return nil
	}
	return errors.Join(unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0), unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 0)) // who gets it next may want to write
}

// mountsOf returns the mount points below dir or of the devices, in the order in which they were mounted.
func mountsOf(dir string, devices []string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		before, after, _ := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if len(left) < 5 || len(right) < 2 {
			continue
		}
		if strings.HasPrefix(left[4], dir+"/") || onDevice(right[1], devices) {
			points = append(points, left[4])
		}
	}
	return points, nil
}

// onDevice reports whether source is one of the devices or a partition of one.
func onDevice(source string, devices []string) bool {
	for _, d := range devices {
		if source == d || strings.HasPrefix(source, d+"p") {
			return true
		}
	}
	return false
}
