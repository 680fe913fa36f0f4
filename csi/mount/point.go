package mount

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	kmount "k8s.io/mount-utils"
)

// Point is one mount.
type Point struct {
	Path     string
	Device   DeviceID // of the filesystem
	Root     string   // what part of the filesystem is shown
	Type     string
	ReadOnly bool // this mount; the filesystem may be writable elsewhere
}

// Points lists every mount in this process's namespace, in the order in which they were made.
func Points() ([]Point, error) {
	infos, err := kmount.ParseMountInfo("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the table of mounts: %w", err)
	}
	points := make([]Point, 0, len(infos))
	for _, m := range infos {
		points = append(points, Point{
			Path:     unescape(m.MountPoint),
			Device:   DeviceID{uint32(m.Major), uint32(m.Minor)},
			Root:     unescape(m.Root),
			Type:     m.FsType,
			ReadOnly: slices.Contains(m.MountOptions, "ro"),
		})
	}
	return points, nil
}

// At lists what is mounted on path, the visible mount last. Nothing mounted, or no such path, is an empty list.
func At(path string) ([]Point, error) {
	resolved, err := Resolve(path)
	if err != nil {
		return nil, err
	}
	points, err := Points()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(points, func(p Point) bool { return p.Path != resolved }), nil
}

// Showing lists the mounts that show the device: its filesystem, or its node bound onto a file.
func Showing(d Device) ([]Point, error) {
	points, err := Points()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(points, func(p Point) bool { return !p.Shows(d) }), nil
}

// Shows reports whether the mount shows the device: its filesystem, or its node bound onto a file.
func (p Point) Shows(d Device) bool { return p.Device == d.ID || d.resides(p) }

// Resolve is the path as the table of mounts has it: absolute, without symbolic links before its last element, which
// is not looked at because that may be a mount that no longer answers. A directory that does not exist stays as it is.
func Resolve(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolve path: %w", err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return path, nil // nothing is mounted below a directory that cannot be reached
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// unescape undoes the kernel's octal escapes for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
