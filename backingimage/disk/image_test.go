package disk_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/disktest"
)

// stage makes a staged image of the named files.
func stage(t *testing.T, d *disk.Disk, uid string, names ...string) {
	t.Helper()
	dir := d.Layout().StagedImage(uid)
	must(t, os.MkdirAll(dir, 0o700))
	for _, name := range names {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(uid), 0o600))
	}
}

func wantUIDs(t *testing.T, what string, list func() ([]string, error), want ...string) {
	t.Helper()
	if got, err := list(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%s are %v (%v), want %v", what, got, err, want)
	}
}

func TestImages(t *testing.T) {
	d := disktest.MustPool(t, disktest.PoolBytes)
	raw := filepath.Join(d.Layout().Image("b"), disk.ImageFile)

	t.Run("published, it is complete and sealed", func(t *testing.T) {
		for _, uid := range []string{"b", "a", "unfinished"} {
			stage(t, d, uid, disk.ImageFile, disk.ManifestFile, disk.CopyFile)
		}
		must(t, d.PublishImage("b"), d.PublishImage("a"), d.PublishImage("a"))
		wantUIDs(t, "images", d.ImageUIDs, "a", "b")
		wantUIDs(t, "staged images", d.StagedImageUIDs, "unfinished")
		for _, name := range []string{disk.ImageFile, disk.ManifestFile, disk.CopyFile} {
			if info, err := os.Stat(filepath.Join(d.Layout().Image("b"), name)); err != nil || info.Mode().Perm() != 0o400 {
				t.Errorf("%s: %v, %v", name, info, err)
			}
		}
		if f, err := os.OpenFile(raw, os.O_RDWR, 0); err == nil {
			f.Close()
			t.Error("root can write to the image")
		}
	})
	t.Run("a seal that is missing is put back", func(t *testing.T) {
		_, err := command.Run(context.Background(), "chattr", "-i", raw)
		must(t, err, d.PublishImage("b"))
		if f, err := os.OpenFile(raw, os.O_RDWR, 0); err == nil {
			f.Close()
			t.Error("root can write to the image")
		}
	})
	t.Run("what exists wins over what is staged", func(t *testing.T) {
		stage(t, d, "b", disk.ImageFile)
		must(t, d.PublishImage("b"))
		wantUIDs(t, "staged images", d.StagedImageUIDs, "unfinished")
	})
	t.Run("nothing staged is NotFound", func(t *testing.T) {
		wantKind(t, backingimage.NotFound, d.PublishImage("none"))
	})
	t.Run("a file that lacks is Precondition", func(t *testing.T) {
		stage(t, d, "half", disk.ImageFile)
		wantKind(t, backingimage.Precondition, d.PublishImage("half"))
		wantUIDs(t, "images", d.ImageUIDs, "a", "b")
	})
	t.Run("removed, it is gone whole, staged or not, and again", func(t *testing.T) {
		stage(t, d, "b", disk.ImageFile)
		for _, uid := range []string{"a", "b", "b", "half", "unfinished", "none"} {
			must(t, d.RemoveImage(uid))
		}
		wantUIDs(t, "images", d.ImageUIDs)
		wantUIDs(t, "staged images", d.StagedImageUIDs)
		if left, err := os.ReadDir(d.Layout().Staging()); err != nil || len(left) > 0 {
			t.Errorf("left in staging: %v (%v)", left, err)
		}
	})
	t.Run("a UID that is no file name is Invalid", func(t *testing.T) {
		for _, uid := range []string{"", ".", "..", "a/b", "a\x00"} {
			wantKind(t, backingimage.Invalid, d.PublishImage(uid))
			wantKind(t, backingimage.Invalid, d.RemoveImage(uid))
		}
	})
}

func TestOpenFinishesRemovalsAndForgetsHalfMadeVolumes(t *testing.T) {
	ctx := context.Background()
	d := disktest.MustPool(t, disktest.PoolBytes)
	stage(t, d, "going", disk.ImageFile, disk.ManifestFile)
	stage(t, d, "resumable", disk.ImageFile)
	must(t, d.PublishImage("going"))
	must(t, os.Rename(d.Layout().Image("going"), filepath.Join(d.Layout().Staging(), "removed-images-going"))) // and killed
	must(t, os.MkdirAll(filepath.Join(d.Layout().StagedVolume("half"), "x"), 0o700))
	must(t, d.Close(ctx))
	again := disktest.MustOpen(t, d.Path(), 0)
	wantUIDs(t, "images", again.ImageUIDs)
	wantUIDs(t, "staged images", again.StagedImageUIDs, "resumable")
	if left, err := os.ReadDir(again.Layout().Staging()); err != nil || len(left) != 1 {
		t.Errorf("left in staging: %v (%v)", left, err)
	}
}
