package loop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// devices is the directory of device nodes.
var devices = "/dev" // replaced in tests

// node returns the path of a block device's node. Containers have a /dev of their own in which new devices do not
// appear: there the node is made.
func node(name string) (string, error) {
	path := filepath.Join(devices, name)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return path, err
	}
	number, err := deviceNumber(name)
	if err != nil {
		return "", err
	}
	err = unix.Mknod(path, unix.S_IFBLK|0o660, int(number))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("make device node %s: %w", path, err)
	}
	return path, nil
}

// showPartitions makes sure that the device's partitions can be opened: that the kernel knows them, and that they have nodes.
func (d Device) showPartitions() error {
	name := filepath.Base(d.Path)
	known, err := partitions(name)
	if err != nil {
		return err
	}
	if len(known) == 0 {
		if err := d.addPartitions(); err != nil {
			return fmt.Errorf("add partitions of %s: %w", d.Path, err)
		}
		if known, err = partitions(name); err != nil {
			return err
		}
	}
	for _, name := range known {
		if _, err := node(name); err != nil {
			return err
		}
	}
	return nil
}

// addPartitions tells the kernel about the partitions in the device's table. The kernel's own checks have the last word: what
// overlaps is left out.
func (d Device) addPartitions() error {
	f, err := os.Open(d.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	found, err := readTable(f, d.Bytes, d.SectorBytes)
	if err != nil {
		return err
	}
	for _, p := range found {
		if err := addPartition(int(f.Fd()), p); err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return nil
}

// partitions returns the names of a device's partitions, e.g. loop3p1.
func partitions(name string) ([]string, error) {
	entries, err := os.ReadDir("/sys/block/" + name)
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", name, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), name+"p") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// withPartitions returns the paths of a device and its partitions.
func withPartitions(device string) []string {
	paths := []string{device}
	names, _ := partitions(filepath.Base(device)) // none when the device is gone
	for _, name := range names {
		paths = append(paths, filepath.Join(devices, name))
	}
	return paths
}
