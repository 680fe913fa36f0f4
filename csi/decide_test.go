package csi

import (
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
)

func TestDecide(t *testing.T) {
	ext4 := mount.Content{Type: "ext4", Filesystem: true}
	xfs := mount.Content{Type: "xfs", Filesystem: true}
	unfinished := mount.Content{Type: "xfs", Filesystem: true, Unfinished: true}
	table := mount.Content{PartitionTable: "gpt", Partitions: []mount.Partition{{Number: 1, Bytes: 10 << 30, Type: "ext4"}, {Number: 14, Bytes: 4 << 20}}}
	for name, c := range map[string]struct {
		found mount.Content
		wish  wish
		want  verdict
	}{
		"an empty volume gets ext4":                               {mount.Content{}, wish{}, verdict{"ext4", true}},
		"an empty volume gets what is asked for":                  {mount.Content{}, wish{fsType: "xfs"}, verdict{"xfs", true}},
		"a mkfs that was killed is done again":                    {unfinished, wish{fsType: "xfs"}, verdict{"xfs", true}},
		"a mkfs that was killed is done again, as something else": {unfinished, wish{fsType: "ext4"}, verdict{"ext4", true}},
		"a clone of a volume never used is formatted":             {mount.Content{Zeros: true}, wish{source: "s"}, verdict{"ext4", true}},
		"a filesystem is mounted":                                 {ext4, wish{fsType: "ext4"}, verdict{"ext4", false}},
		"an image's filesystem is taken as it is":                 {xfs, wish{image: "i"}, verdict{"xfs", false}},
		"what was once formatted is never formatted again":        {xfs, wish{}, verdict{"xfs", false}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decide(c.found, c.wish)
			if err != nil || got != c.want {
				t.Errorf("got %+v, %v; want %+v", got, err, c.want)
			}
		})
	}
	for name, c := range map[string]struct {
		found mount.Content
		wish  wish
		says  []string
	}{
		"a blank image":                     {mount.Content{}, wish{volume: "v", image: "fedora"}, []string{"volume v (image fedora)", "no filesystem", "volumeMode Block"}},
		"an empty volume, read-only":        {mount.Content{}, wish{volume: "v", readOnly: true}, []string{"cannot be formatted", "mode that writes"}},
		"a clone with data of its own kind": {mount.Content{}, wish{source: "volume s"}, []string{"clone of volume s", "volumeMode Block"}},
		"an image that holds a broken XFS":  {unfinished, wish{image: "fedora"}, []string{"never finished"}},
		"a partitioned image":               {table, wish{image: "fedora"}, []string{"gpt", "volumeMode Block", `partition: "N"`, "1 (ext4, 10240 MiB)", "14 (no filesystem, 4 MiB)"}},
		"a partition with a table inside":   {table, wish{image: "fedora", partition: 2}, []string{"partition 2 of", "volumeMode Block"}},
		"LUKS":                              {mount.Content{Type: "crypto_LUKS"}, wish{image: "fedora"}, []string{"crypto_LUKS", "volumeMode Block"}},
		"LVM on a volume without an image":  {mount.Content{Type: "LVM2_member"}, wish{volume: "v"}, []string{"LVM2_member", "volume v"}},
		"a filesystem that is not mounted":  {mount.Content{Type: "btrfs", Filesystem: true}, wish{image: "fedora"}, []string{"btrfs", "ext4 and xfs"}},
		"another filesystem than asked for": {ext4, wish{image: "fedora", fsType: "xfs"}, []string{"ext4", "xfs", "fsType"}},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			got, err := decide(c.found, c.wish)
			if !backingimage.Is(err, backingimage.Precondition) {
				t.Fatalf("got %+v, %v; want Precondition", got, err)
			}
			for _, want := range c.says {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}
