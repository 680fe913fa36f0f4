package reflink_test

import (
	"os"
	"path/filepath"
	"testing"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/provisioner/engine"
	"plinth.dev/plinth/provisioner/engine/enginetest"
	"plinth.dev/plinth/provisioner/engine/reflink"
)

func TestMain(m *testing.M) {
	os.Exit(enginetest.Main(m, func(place string) engine.Engine {
		return reflink.New(disk.Layout(place), reflink.Options{})
	}))
}

func TestEngineOnPool(t *testing.T) {
	enginetest.Run(t, func(tb testing.TB) (engine.Engine, enginetest.Fixture) {
		return open(tb, disktest.MustPool(tb, disktest.PoolBytes))
	})
}

func TestEngineOnBtrfs(t *testing.T) {
	enginetest.Run(t, func(tb testing.TB) (engine.Engine, enginetest.Fixture) {
		mount := disktest.MustFilesystem(tb, "btrfs", 512<<20)
		return open(tb, disktest.MustOpen(tb, filepath.Join(mount, "disk"), 0))
	})
}

// open returns the engine of a disk, and what the suite does behind its back.
func open(tb testing.TB, d *disk.Disk) (engine.Engine, enginetest.Fixture) {
	reopen := func(testing.TB) engine.Engine {
		return reflink.New(d.Layout(), reflink.Options{Capacity: d.Capacity})
	}
	return reopen(tb), enginetest.Fixture{
		Reopen: reopen,
		Place:  string(d.Layout()),
		Room:   d.Layout().Staging(),
		Image: func(tb testing.TB, uid string, fill func(f *os.File)) {
			disktest.MustImage(tb, d, uid, fill)
		},
		Litter: func(tb testing.TB, id string) {
			staged := d.Layout().StagedVolume(id)
			if err := os.MkdirAll(staged, 0o700); err != nil {
				tb.Fatal(err)
			}
			for _, name := range []string{disk.VolumeFile, disk.VolumeRecord} {
				if err := os.WriteFile(filepath.Join(staged, name), []byte("half"), 0o600); err != nil {
					tb.Fatal(err)
				}
			}
		},
		Devices: func(tb testing.TB) []string {
			var paths []string
			for _, device := range disktest.Devices(tb, string(d.Layout())) {
				paths = append(paths, device.Path)
			}
			return paths
		},
	}
}
