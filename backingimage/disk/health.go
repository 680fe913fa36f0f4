package disk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
)

// Problem is what is wrong with a disk, in the word that its condition has as reason. The first ones mean that the disk
// is not at its path, so that whoever has it open closes it; the others that it is there and must not be written.
type Problem string

const (
	ProblemGone       Problem = "Gone"            // unmounted, unplugged, or another directory is at its path
	ProblemForeign    Problem = "ForeignIdentity" // the identity file at its path is another disk's
	ProblemMissing    Problem = "IdentityMissing" // the identity file was removed
	ProblemUnreadable Problem = "IdentityUnreadable"
	ProblemReadOnly   Problem = "ReadOnly"  // the filesystem is mounted, or was turned, read-only
	ProblemImmutable  Problem = "Immutable" // one of its directories has the immutable or the append-only flag
	ProblemNoRoom     Problem = "NoRoom"    // not even a block can be written
	ProblemFailing    Problem = "Failing"   // reading or writing it fails
)

// Away reports whether the disk is no longer where it was opened.
func (p Problem) Away() bool { return p == ProblemGone || p == ProblemForeign }

// troubled is an error that a Problem stands behind.
type troubled struct {
	error
	problem Problem
}

func (t *troubled) Unwrap() error { return t.error }

// trouble is a Precondition error about the disk at a path.
func trouble(p Problem, path, format string, args ...any) error {
	return &troubled{backingimage.Errorf(backingimage.Precondition, "disk %s: "+format, append([]any{path}, args...)...), p}
}

// ProblemOf returns the Problem behind an error of Open, Healthy, Usable or anything that read or wrote a disk, "" when
// the disk is not to blame.
func ProblemOf(err error) Problem {
	var t *troubled
	switch {
	case errors.As(err, &t):
		return t.problem
	case errors.Is(err, unix.EROFS):
		return ProblemReadOnly
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return ProblemNoRoom
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ESHUTDOWN):
		return ProblemFailing
	}
	return ""
}

// Usable reports why nothing may be written to the disk or removed from it: it is no longer there, its identity is not its own, or
// the last Healthy found something. It costs a system call and the reading of a small file, so it may be asked before each
// change.
func (d *Disk) Usable() error {
	if found := d.found.Load(); found != nil {
		return *found // and the disk, which may hang, is not asked
	}
	return d.identified()
}

// Healthy reports what is wrong with the disk now, with what to do about it; see ProblemOf. It writes and syncs a block, and so can
// hang when the disk does. A disk without any room is healthy: what is on it can be used; see Room.
func (d *Disk) Healthy() error {
	err := d.identified()
	if err == nil {
		err = d.writable()
	}
	d.Blame(err)
	return err
}

// Blame makes the disk unusable for the reason given, or, with nil, usable again; the next Healthy that ends knows better. It is for what
// Healthy cannot say itself: that it does not end.
func (d *Disk) Blame(err error) {
	if err == nil {
		d.found.Store(nil)
		return
	}
	d.found.Store(&err)
}

// identified reports whether the disk's directory and identity are those that were opened.
func (d *Disk) identified() error {
	root, err := inodeOf(string(d.layout))
	if ProblemOf(err) == ProblemFailing {
		return failing(d.path, err)
	}
	if err != nil {
		return trouble(ProblemGone, d.path, "its directory is gone (%w): plug it in and mount it again, and it is taken up by itself", err)
	}
	if root != d.root {
		return trouble(ProblemGone, d.path, "%s shows another directory than when it was opened: it was unmounted, or something was mounted over it; mount it again, and it is taken up by itself", d.layout)
	}
	id, err := readIdentity(d.layout)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return trouble(ProblemMissing, d.path, "%s is gone, and nothing is written until it is back: restore it, or write {\"uuid\": %q, \"formatVersion\": %d} into it", d.layout.identityFile(), d.id.UUID, d.id.FormatVersion)
	case ProblemOf(err) == ProblemFailing:
		return failing(d.path, err)
	case err != nil:
		return fmt.Errorf("disk %s: %w", d.path, err)
	case id.UUID != d.id.UUID:
		return trouble(ProblemForeign, d.path, "%s says %s, and it was %s when the disk was opened: nothing is written to another's disk; put back the disk that belongs there, or its file", d.layout.identityFile(), id.UUID, d.id.UUID)
	}
	return nil
}

// writable tries what every copy and volume needs.
func (d *Disk) writable() error {
	for _, dir := range []string{string(d.layout), d.layout.Images(), d.layout.Volumes(), d.layout.Staging()} {
		if frozen(dir) {
			return immutable(d.path, dir)
		}
	}
	err := probe(d.layout.Staging())
	switch p := ProblemOf(err); {
	case err == nil || p == ProblemNoRoom:
		return nil
	case p == ProblemReadOnly:
		return trouble(p, d.path, "its filesystem is read-only: look at the kernel's log for an error that turned it so, repair it if there is one, and remount it with: mount -o remount,rw (%w)", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return immutable(d.path, d.layout.Staging())
	default:
		return failing(d.path, err)
	}
}

func failing(path string, err error) error {
	return trouble(ProblemFailing, path, "reading or writing it fails (%w): look at the kernel's log for its cause, unmount it (umount -l), repair or replace it, and mount it again", err)
}

func immutable(path, dir string) error {
	return trouble(ProblemImmutable, path, "nothing can be made or removed in %s: allow it with: chattr -i -a %s", dir, dir)
}

// frozen reports whether a directory has the immutable or the append-only flag. Where there are no flags, none is set.
func frozen(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&(immutableFlag|appendFlag) != 0
}

// probe writes a block that no kill can leave behind, and syncs it.
func probe(dir string) error {
	f, err := nameless(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 4096)); err != nil {
		return err
	}
	return f.Sync()
}

// minimalRoom is what a disk needs for removing and recording things, whatever its size.
const minimalRoom = 16 << 20

// Room reports, as a Full error, that less than a hundredth of the disk is free: copies and volumes on it can be used, new ones
// fail. total and available are the bytes that Capacity returned.
func (d *Disk) Room(total, available int64) error {
	least := max(total/100, minimalRoom)
	if available >= least {
		return nil
	}
	return backingimage.Errorf(backingimage.Full, "%s of %s are free: remove images or volumes (plinth disk show %s lists them), delete what else is on its filesystem, or move copies away with: plinth disk evict %s",
		backingimage.SizeText(max(available, 0)), backingimage.SizeText(total), d.id.UUID, d.id.UUID)
}
