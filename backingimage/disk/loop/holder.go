package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"plinth.dev/plinth/backingimage/disk/mountinfo"
)

// holderOf says in words who holds a device, for an error message: it is never an error that nobody can be named. lasting
// means that waiting a moment will not help.
func holderOf(device string) (words string, lasting bool) {
	paths := withPartitions(device)
	for _, path := range paths {
		if mounts, err := mountinfo.Of(path); err == nil && len(mounts) > 0 {
			return "mounted on " + mounts[0].Point, true
		}
		if holders, _ := os.ReadDir(filepath.Join("/sys/class/block", filepath.Base(path), "holders")); len(holders) > 0 {
			return "part of the device " + holders[0].Name(), true
		}
	}
	if pid, name, found := opener(paths); found {
		return fmt.Sprintf("open in process %d (%s)", pid, name), false
	}
	return "held open or mounted elsewhere (another container or mount namespace)", false
}

// opener finds another process that has one of the paths open.
func opener(paths []string) (pid int, name string, found bool) {
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range descriptors {
		if target, err := os.Readlink(fd); err != nil || !slices.Contains(paths, target) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(fd, "/")[2])
		if err != nil {
			continue
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return pid, strings.TrimSpace(string(name)), true
	}
	return 0, "", false
}
