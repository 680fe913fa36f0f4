// Package mountinfo answers two questions about the mounts that this process sees: what is mounted here, and where is
// this device mounted. It reads /proc/self/mountinfo each time: a mount that another process made or removed a moment
// ago is what the caller asks about. Mounts in other mount namespaces are not seen.
package mountinfo

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
)

// Mount is one line of mountinfo.
type Mount struct {
	Point    string // where it is mounted
	Source   string // what is mounted, usually a device's path
	Type     string // the filesystem, e.g. "xfs"
	Major    uint32 // of the filesystem's device; 0 for filesystems without one, and for btrfs
	Minor    uint32
	ReadOnly bool // this mount, or the whole filesystem, refuses writes
}

// List returns all mounts, in the order in which they were made.
func List() ([]Mount, error) {
	lines, err := mount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	mounts := make([]Mount, len(lines))
	for i, l := range lines {
		mounts[i] = Mount{
			Point:    unescape.Replace(l.MountPoint),
			Source:   unescape.Replace(l.Source),
			Type:     l.FsType,
			Major:    uint32(l.Major),
			Minor:    uint32(l.Minor),
			ReadOnly: slices.Contains(l.MountOptions, "ro") || slices.Contains(l.SuperOptions, "ro"),
		}
	}
	return mounts, nil
}

// unescape undoes what the kernel does to the characters that separate fields and lines.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\043`, "#", `\134`, `\`)

// At returns the mount that is seen at a directory: the last one made there. The path must be free of symbolic links.
func At(point string) (m Mount, mounted bool, err error) {
	mounts, err := List()
	if err != nil {
		return Mount{}, false, err
	}
	for _, candidate := range mounts {
		if candidate.Point == point {
			m, mounted = candidate, true
		}
	}
	return m, mounted, nil
}

// Of returns the mounts of a block device, which is named by the path of its node.
func Of(device string) ([]Mount, error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, fmt.Errorf("find mounts of %s: %w", device, err)
	}
	mounts, err := List()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(mounts, func(m Mount) bool { return m.Source != device && !m.on(st.Rdev) }), nil
}

// on reports whether the mounted filesystem's device has the number.
func (m Mount) on(device uint64) bool {
	return m.Major != 0 && m.Major == unix.Major(device) && m.Minor == unix.Minor(device)
}
