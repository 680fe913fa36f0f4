package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk/freeze"
)

// Options of Open.
type Options struct {
	// PoolBytes is the size of the pool that Open makes when the directory cannot reflink; at least MinPoolBytes.
	// 0 takes 80 % of the free space. A pool that exists grows to it and never shrinks.
	PoolBytes int64
	// Clock stamps a new disk's identity; the system's when nil.
	Clock clock.PassiveClock
	// Admit is asked before anything is written, with the UUID of the disk that was found, or "" when there is none and
	// a new one would be made. Its error is Open's. Nil admits every disk. It may be asked twice.
	Admit func(uuid string) error
}

func (o *Options) validate() error {
	if o.PoolBytes != 0 && o.PoolBytes < MinPoolBytes {
		return backingimage.Errorf(backingimage.Invalid, "the pool size (PoolBytes) is %d bytes: give at least %d bytes (512 MiB), or 0 for 80 %% of the free space", o.PoolBytes, int64(MinPoolBytes))
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Admit == nil {
		o.Admit = func(string) error { return nil }
	}
	return nil
}

// Disk is an open disk. Its methods may be called at once by many; PublishImage and RemoveImage by one caller for each
// image.
type Disk struct {
	path   string   // as given to Open, clean
	lock   *os.File // the directory, with a flock on it: one agent for each disk
	layout Layout
	pool   *pool // nil when the directory itself can reflink
	id     identity
	root   inode // of the layout's directory when it was opened

	found atomic.Pointer[error] // what the last Healthy found, nil when nothing
}

// inode tells a directory from another one that is later seen at its path.
type inode struct{ dev, ino uint64 }

// Open opens the disk in a directory, and makes the directory, the pool and the identity when they are not there yet. It
// finishes whatever an earlier Open, or the agent, was killed in.
//
// Invalid when the path cannot hold a disk; Busy when another process has the disk open; Full when there is no room for a
// pool; Precondition when something is there that must not be built upon; Unsupported for a format that is newer than
// this program; Corrupt when the identity or the pool cannot be read.
func Open(ctx context.Context, path string, o Options) (*Disk, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	real, err := makeDirectory(path, o)
	if err != nil {
		return nil, err
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	d := &Disk{path: filepath.Clean(path), lock: lock, layout: Layout(real)}
	if err := d.open(ctx, o); err != nil {
		d.Close(ctx) // logs what it leaves; the error that matters is the first
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	klog.FromContext(ctx).Info("Opened disk", "path", path, "uuid", d.id.UUID, "filesystem", d.Filesystem(), "pool", d.Pool())
	return d, nil
}

func (d *Disk) open(ctx context.Context, o Options) error {
	if !holdsDisk(string(d.layout)) {
		if err := o.Admit(""); err != nil {
			return err
		}
	}
	needed, err := needsPool(string(d.layout))
	if err != nil {
		return err
	}
	if needed {
		if d.pool, err = openPool(ctx, string(d.layout), o.PoolBytes); err != nil {
			return err
		}
		d.layout = Layout(d.pool.mount)
	}
	if err := d.admitted(o); err != nil {
		return err
	}
	for _, dir := range []string{d.layout.Images(), d.layout.Volumes(), d.layout.Snapshots(), d.layout.Staging()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if d.root, err = inodeOf(string(d.layout)); err != nil {
		return err
	}
	if d.id, err = openIdentity(d.layout, o.Clock); err != nil {
		return err
	}
	if err := d.thaw(ctx); err != nil && ProblemOf(err) != ProblemReadOnly {
		return err
	}
	if err := d.sweep(); err != nil && ProblemOf(err) != ProblemReadOnly {
		return err
	}
	return nil
}

// admitted asks whether what is on the disk may be used, or a disk be made.
func (d *Disk) admitted(o Options) error {
	id, err := readIdentity(d.layout)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := lostIdentity(d.layout); err != nil {
			return err
		}
		return o.Admit("")
	case err != nil:
		return err
	}
	return o.Admit(id.UUID)
}

// thaw ends what an agent was killed in while it held volumes' filesystems frozen.
func (d *Disk) thaw(ctx context.Context) error {
	markers, err := filepath.Glob(d.layout.Frozen("*"))
	if err != nil {
		return fmt.Errorf("look for frozen filesystems: %w", err)
	}
	for _, marker := range markers {
		if err := freeze.Recover(ctx, marker); err != nil {
			return err
		}
	}
	return nil
}

// UUID of the disk, as stored on it.
func (d *Disk) UUID() string { return d.id.UUID }

// Layout says where things are on the disk.
func (d *Disk) Layout() Layout { return d.layout }

// Path is the directory that was opened.
func (d *Disk) Path() string { return d.path }

// Pool reports whether the disk lives in a pool file.
func (d *Disk) Pool() bool { return d.pool != nil }

// Filesystem returns the name of the filesystem that holds the copies and volumes, e.g. xfs or btrfs.
func (d *Disk) Filesystem() string { return filesystemOf(string(d.layout)) }

// Close lets another process open the disk. A pool that nothing uses is unmounted; one that has attached volumes or open files
// stays mounted, serves them on, and is adopted by the next Open.
func (d *Disk) Close(ctx context.Context) error {
	if d.lock == nil {
		return nil
	}
	defer func() {
		unix.Flock(int(d.lock.Fd()), unix.LOCK_UN) // a child between fork and exec may hold a copy of the descriptor
		d.lock.Close()
		d.lock = nil
	}()
	if d.pool == nil {
		return nil
	}
	err := d.pool.close(ctx)
	if backingimage.Is(err, backingimage.InUse) {
		klog.FromContext(ctx).Info("Left the pool mounted: it is in use", "path", d.path, "reason", err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("close disk %s: %w", d.path, err)
	}
	return nil
}

// holdsDisk reports whether a disk was ever made in a directory.
func holdsDisk(dir string) bool {
	for _, name := range []string{poolFile, IdentityFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return lostIdentity(Layout(dir)) != nil
}

// makeDirectory makes sure that path is a directory, and returns it without symbolic links.
func makeDirectory(path string, o Options) (string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
		return "", backingimage.Errorf(backingimage.Invalid, "disk path %q: give an absolute path of a directory that is not the root", path)
	}
	if _, err := os.Stat(path); ProblemOf(err) == ProblemFailing {
		return "", failing(path, err)
	} else if errors.Is(err, os.ErrNotExist) {
		if err := o.Admit(""); err != nil {
			return "", fmt.Errorf("open disk %s: %w", path, err)
		}
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", backingimage.Errorf(backingimage.Invalid, "disk path %q: cannot make the directory (%w): make it yourself, or give another path", path, err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", backingimage.Errorf(backingimage.Invalid, "disk path %q: %w", path, err)
	}
	return real, nil
}

// lockDirectory takes the flock that says "this disk is open". The kernel drops it with the process.
func lockDirectory(path string) (*os.File, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "disk path %q: cannot open the directory: %w", path, err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return dir, nil
	}
	dir.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, backingimage.Errorf(backingimage.Busy, "disk %s is open in another process: stop the other agent, or give this one another directory", path)
	}
	return nil, fmt.Errorf("lock disk %s: %w", path, err)
}

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return inode{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return inode{dev: st.Dev, ino: st.Ino}, nil
}
