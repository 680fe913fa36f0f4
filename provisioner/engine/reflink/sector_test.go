package reflink_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

const contentBytes = 310 << 20 // the least that XFS takes, and a little

func TestDevicesOfClonesHaveTheSectorThatTheirContentBears(t *testing.T) {
	d := disktest.MustPool(t, 1<<30)
	e := reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
	for name, tc := range map[string]struct {
		mkfs   []string
		boot   string // written at the start
		sector int
		direct bool
	}{
		"ext4 with blocks of 4096":                 {mkfs: []string{"mkfs.ext4", "-q", "-F", "-b", "4096"}, sector: 4096, direct: true},
		"ext4 with blocks of 1024":                 {mkfs: []string{"mkfs.ext4", "-q", "-F", "-b", "1024"}, sector: 512},
		"ext4 with a boot sector":                  {mkfs: []string{"mkfs.ext4", "-q", "-F", "-b", "4096"}, boot: "\xeb\x58", sector: 512},
		"xfs with sectors of 4096":                 {mkfs: []string{"mkfs.xfs", "-q", "-f", "-s", "size=4096"}, sector: 4096, direct: true},
		"xfs with sectors of 512":                  {mkfs: []string{"mkfs.xfs", "-q", "-f", "-s", "size=512"}, sector: 512},
		"no filesystem, such as a partition table": {boot: "MBR", sector: 512},
	} {
		t.Run(name, func(t *testing.T) {
			disktest.MustImage(t, d, "image", func(f *os.File) { fillImage(t, f, tc.mkfs, tc.boot) })
			must(t, e.Clone(context.Background(), engine.Volume{ID: "v", Bytes: contentBytes, Name: "v"}, engine.From{Image: "image"}))
			t.Cleanup(func() { must(t, e.Delete(context.Background(), "v")) })
			for range 2 {
				_, err := e.Attach(context.Background(), "v", engine.AttachOptions{})
				must(t, err)
				got, _, err := loop.Find(filepath.Join(d.Layout().Volume("v"), disk.VolumeFile))
				must(t, err)
				if got.SectorBytes != tc.sector || got.DirectIO != tc.direct {
					t.Errorf("sectors of %d bytes, direct %t; want %d, %t", got.SectorBytes, got.DirectIO, tc.sector, tc.direct)
				}
			}
		})
	}
}

func fillImage(t *testing.T, f *os.File, mkfs []string, boot string) {
	t.Helper()
	must(t, f.Truncate(contentBytes))
	if len(mkfs) > 0 {
		out, err := exec.Command(mkfs[0], append(mkfs[1:], f.Name())...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	_, err := f.WriteAt([]byte(boot), 0)
	must(t, err)
}
