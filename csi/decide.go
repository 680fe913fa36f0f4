package csi

import (
	"cmp"
	"fmt"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
)

// wish is what a call wants of a device's filesystem.
type wish struct {
	volume    string
	image     string // the image that the volume came from; "" for one that was empty
	source    string // the volume or snapshot that it was made from; "" for none
	fsType    string // "": any
	partition int32  // that the device is; 0 for a whole device
	readOnly  bool
}

// verdict is what staging does: mount the filesystem, after making it if need be.
type verdict struct {
	fsType string
	format bool
}

// decide weighs what was found on a device against what is wanted. Only a volume that came without an image is ever
// formatted, and only when nothing recognisable is on it; a clone, only when it is empty.
func decide(c mount.Content, w wish) (verdict, error) {
	switch {
	case c.Blank() || c.Unfinished && w.image == "":
		return decideBlank(c, w)
	case c.Unfinished:
		return verdict{}, w.refuse("holds an XFS that was never finished; make the image anew")
	case c.PartitionTable != "":
		return verdict{}, w.refusePartitions(c)
	case !c.Filesystem:
		return verdict{}, w.refuse("holds %s, which is no filesystem; use volumeMode Block", c.Type)
	case c.Type != mount.Ext4 && c.Type != mount.XFS:
		return verdict{}, w.refuse("holds %s, and Plinth mounts ext4 and xfs; use volumeMode Block", c.Type)
	case w.fsType != "" && w.fsType != c.Type:
		return verdict{}, w.refuse("holds %s and fsType asks for %s; ask for %s, or for none to take what is there", c.Type, w.fsType, c.Type)
	}
	return verdict{fsType: c.Type}, nil
}

func decideBlank(c mount.Content, w wish) (verdict, error) {
	switch {
	case w.source != "" && !c.Zeros:
		return verdict{}, w.refuse("is a clone of %s and holds data, but no filesystem; use volumeMode Block", w.source)
	case w.image != "":
		return verdict{}, w.refuse("has no filesystem; use volumeMode Block, or an image with an ext4 or xfs on it")
	case w.readOnly:
		return verdict{}, w.refuse("is empty and cannot be formatted read-only; use it once with a mode that writes")
	}
	return verdict{fsType: cmp.Or(w.fsType, mount.Ext4), format: true}, nil
}

func (w wish) refusePartitions(c mount.Content) error {
	list := listOf(c.Partitions)
	if w.image == "" || w.partition > 0 {
		return w.refuse("holds a %s partition table and no filesystem; use volumeMode Block. Its partitions: %s", c.PartitionTable, list)
	}
	return w.refuse("holds a %s partition table and no filesystem; use volumeMode Block, or class parameter partition: \"N\" to mount one of its partitions: %s", c.PartitionTable, list)
}

func listOf(partitions []mount.Partition) string {
	var list []string
	for _, p := range partitions {
		list = append(list, p.String())
	}
	return cmp.Or(strings.Join(list, ", "), "none")
}

func (w wish) refuse(format string, args ...any) error {
	what := "volume " + w.volume
	if w.partition > 0 {
		what = fmt.Sprintf("partition %d of %s", w.partition, what)
	}
	if w.image != "" {
		what += " (image " + w.image + ")"
	}
	return backingimage.Errorf(backingimage.Precondition, "%s %s", what, fmt.Sprintf(format, args...))
}
