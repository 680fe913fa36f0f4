package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// sealed are the files of a finished copy that nobody, root included, may change by accident.
var sealed = []string{ImageFile, ManifestFile}

// removedPrefix begins the names in staging of what is being removed: not an image, not a staged one, and swept by Open.
const removedPrefix = "removed-"

// PublishImage makes a staged image a finished copy: synced, read-only, immutable where the filesystem and our rights allow it,
// and under its name in one step. A copy that exists already is sealed again, and wins over what is staged.
//
// NotFound when nothing is staged; Precondition when the staged image lacks a file; Invalid for a UID that is no name.
func (d *Disk) PublishImage(uid string) error {
	if err := CheckName("image UID", uid); err != nil {
		return err
	}
	image, staged := d.layout.Image(uid), d.layout.StagedImage(uid)
	if _, err := os.Stat(image); errors.Is(err, os.ErrNotExist) {
		if err := finish(staged); err != nil {
			return fmt.Errorf("publish image %s: %w", uid, err)
		}
		if err := durable.Rename(staged, image); err != nil {
			return fmt.Errorf("publish image %s: %w", uid, err)
		}
	} else if err != nil {
		return fmt.Errorf("publish image %s: %w", uid, err)
	} else if err := purge(staged); err != nil {
		return fmt.Errorf("publish image %s: %w", uid, err)
	}
	for _, name := range sealed {
		if err := setImmutable(filepath.Join(image, name), true); err != nil {
			return fmt.Errorf("publish image %s: %w", uid, err)
		}
	}
	return nil
}

// finish makes a staged image's files read-only and durable.
func finish(staged string) error {
	entries, err := os.ReadDir(staged)
	if errors.Is(err, os.ErrNotExist) {
		return backingimage.Errorf(backingimage.NotFound, "nothing is staged in %s", staged)
	}
	if err != nil {
		return err
	}
	for _, name := range sealed {
		if _, err := os.Stat(filepath.Join(staged, name)); err != nil {
			return backingimage.Errorf(backingimage.Precondition, "the staged image is not complete: %w", err)
		}
	}
	for _, e := range entries {
		if err := finishFile(filepath.Join(staged, e.Name())); err != nil {
			return err
		}
	}
	return durable.SyncDir(staged)
}

func finishFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o400); err != nil {
		return err
	}
	return f.Sync()
}

// RemoveImage removes a copy and what is staged or uploaded of it. No such image is success. Volumes cloned from it keep their data.
func (d *Disk) RemoveImage(uid string) error {
	if err := CheckName("image UID", uid); err != nil {
		return err
	}
	for _, dir := range []string{d.layout.StagedImage(uid), d.layout.StagedUpload(uid), d.layout.Image(uid)} {
		if err := d.layout.Remove(dir); err != nil {
			return fmt.Errorf("remove image %s: %w", uid, err)
		}
	}
	return nil
}

// Remove removes the directory of an image or a volume, staged or not. It goes in one step that survives a power loss:
// killed at any time, it is there whole or not there at all. No such directory is success.
func (l Layout) Remove(dir string) error {
	removed := filepath.Join(l.Staging(), removedPrefix+filepath.Base(filepath.Dir(dir))+"-"+filepath.Base(dir))
	if err := purge(removed); err != nil {
		return err
	}
	err := durable.Rename(dir, removed)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, unix.EPERM) && frozen(dir):
		return immutable(string(l), dir)
	case err != nil:
		return err
	}
	return purge(removed)
}

// sweep finishes the removals that were killed half-way, and removes half-made volumes and snapshots: those are never resumed, and nobody can
// be at work on one while the disk is being opened. Staged images stay; their fetch goes on.
func (d *Disk) sweep() error {
	for _, prefix := range []string{removedPrefix, "volume-", "snapshot-"} {
		names, err := names(d.layout.Staging(), prefix)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := purge(filepath.Join(d.layout.Staging(), prefix+name)); err != nil {
				return fmt.Errorf("sweep %s: %w", d.layout.Staging(), err)
			}
		}
	}
	return nil
}

// purge removes a directory with everything in it, immutable files too.
func purge(dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		return setImmutable(path, false)
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// ImageUIDs returns the UIDs of the finished copies, sorted.
func (d *Disk) ImageUIDs() ([]string, error) { return names(d.layout.Images(), "") }

// StagedImageUIDs returns the UIDs of the images that are being made or uploaded, or were when the agent was killed, sorted.
func (d *Disk) StagedImageUIDs() ([]string, error) {
	staged, err := names(d.layout.Staging(), "image-")
	if err != nil {
		return nil, err
	}
	uploaded, err := names(d.layout.Staging(), "upload-")
	all := append(staged, uploaded...)
	slices.Sort(all)
	return slices.Compact(all), err
}

// names returns the names of the directories in dir that begin with the prefix, without it, sorted.
func names(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), prefix); ok && e.IsDir() {
			names = append(names, name)
		}
	}
	return names, nil
}

// CheckName says whether name can be a directory of the layout; field names it in the error, which is Invalid.
func CheckName(field, name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 200 || strings.ContainsAny(name, "/\x00") {
		return backingimage.Errorf(backingimage.Invalid, "%s %q cannot be a file name: it must have 1 to 200 characters, no slash, and not be . or ..", field, name)
	}
	return nil
}

// Flags of linux/fs.h: FS_IMMUTABLE_FL, no write, unlink, rename or chmod until it is cleared; and FS_APPEND_FL, nothing but
// additions.
const (
	immutableFlag = 0x10
	appendFlag    = 0x20
)

// setImmutable sets or clears the flag. Where it cannot be set the copy is protected by its mode alone.
func setImmutable(path string, on bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&immutableFlag != 0 == on {
		return nil
	}
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags^immutableFlag)
	}
	if on && (errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM)) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("change the immutable flag of %s: %w", path, err)
	}
	return nil
}
