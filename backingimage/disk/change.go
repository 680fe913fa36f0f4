package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"plinth.dev/plinth/backingimage"
)

// ChangeImage lets change write to the content of a finished copy, whose seal it opens for as long as that takes. Volumes that
// share blocks with the copy keep them as they are: the filesystem gives the copy other blocks for what is written. A kill
// leaves the seal open; PublishImage closes it.
//
// NotFound when there is no such copy; Invalid for a UID that is no name; else the error of change.
func (d *Disk) ChangeImage(uid string, change func(content *os.File) error) error {
	if err := CheckName("image UID", uid); err != nil {
		return err
	}
	path := filepath.Join(d.layout.Image(uid), ImageFile)
	err := setImmutable(path, false)
	if errors.Is(err, os.ErrNotExist) {
		return backingimage.Errorf(backingimage.NotFound, "there is no copy of image %s on disk %s", uid, d.path)
	}
	if err != nil {
		return fmt.Errorf("open the seal of image %s: %w", uid, err)
	}
	return errors.Join(changeFile(path, change), setImmutable(path, true))
}

// changeFile makes a read-only file writable for as long as change runs.
func changeFile(path string, change func(*os.File) error) error {
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, os.Chmod(path, 0o400))
	}
	defer f.Close()
	return errors.Join(change(f), f.Chmod(0o400))
}
