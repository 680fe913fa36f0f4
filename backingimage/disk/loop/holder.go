package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage/disk/mountinfo"
)

// Who holds a device is found out for error messages only: that nobody can be named is no error.

// claim says what a device is mounted on or part of, or nothing.
func claim(device string) string {
	for _, path := range withPartitions(device) {
		if mounts, err := mountinfo.Of(path); err == nil && len(mounts) > 0 {
			return "mounted on " + mounts[0].Point
		}
		if holders, _ := os.ReadDir(filepath.Join("/sys/class/block", filepath.Base(path), "holders")); len(holders) > 0 {
			return "part of the device " + holders[0].Name()
		}
	}
	return ""
}

// opener names a process that has a device open.
func opener(device string) string {
	paths := withPartitions(device)
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range descriptors {
		if target, err := os.Readlink(fd); err != nil || !slices.Contains(paths, target) {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("open in process %s (%s)", pid, strings.TrimSpace(string(name)))
	}
	return "held open or mounted where this process cannot see it, in another container or mount namespace"
}
