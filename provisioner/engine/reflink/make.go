package reflink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/provisioner/engine"
)

var ficlone = unix.IoctlFileClone // replaced in tests

// Create makes an empty volume.
func (e *Engine) Create(ctx context.Context, v engine.Volume) error {
	return e.make(ctx, record{Volume: v}, func(*os.File, int64) error { return nil })
}

// Clone makes a volume of an image's or a volume's content. Of a volume it takes what is written back to the device, and what
// the device still caches: the clone is what a power loss at this moment would leave. Freeze a mounted filesystem first
// when it must be clean.
func (e *Engine) Clone(ctx context.Context, v engine.Volume, from engine.From) error {
	if err := checkFrom(v, from); err != nil {
		return err
	}
	return e.make(ctx, record{Volume: v, From: from}, func(target *os.File, size int64) error {
		source, err := e.openSource(from)
		if err != nil {
			return err
		}
		defer source.Close()
		if info, err := source.Stat(); err != nil {
			return err
		} else if size < info.Size() {
			return backingimage.Errorf(backingimage.OutOfRange, "volume %s: %d bytes are less than the %d bytes of what it is cloned from: ask for at least that", v.ID, size, info.Size())
		}
		if err := ficlone(int(target.Fd()), int(source.Fd())); err != nil {
			return err
		}
		return e.undamaged(from) // again: damage may have been found meanwhile
	})
}

// undamaged refuses an image's copy that is known to be damaged, by the mark that whoever found it left beside it: NotReady, since
// it is going to be repaired.
func (e *Engine) undamaged(from engine.From) error {
	if from.Image == "" {
		return nil
	}
	_, err := os.Lstat(filepath.Join(e.layout.Image(from.Image), disk.DamagedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return backingimage.Errorf(backingimage.NotReady, "the copy of image %s on this disk is damaged, and is being repaired", from.Image)
}

func checkFrom(v engine.Volume, from engine.From) error {
	switch {
	case (from.Image == "") == (from.Volume == ""):
		return backingimage.Errorf(backingimage.Invalid, "volume %s: a clone starts from an image or from a volume, and from exactly one: got image %q and volume %q", v.ID, from.Image, from.Volume)
	case from.Volume == v.ID:
		return backingimage.Errorf(backingimage.Invalid, "volume %s: it cannot be a clone of itself", v.ID)
	case from.Volume != "":
		return checkID(from.Volume)
	}
	return disk.CheckName("image UID", from.Image)
}

// make makes the volume that r describes unless it exists; fill writes its first bytes.
func (e *Engine) make(ctx context.Context, r record, fill func(target *os.File, size int64) error) error {
	if err := checkID(r.ID); err != nil {
		return err
	}
	var err error
	if r.Bytes, err = roundSize(r.ID, r.Bytes); err != nil {
		return err
	}
	unlock, err := e.lock(ctx, r.ID, r.From.Volume)
	if err != nil {
		return fmt.Errorf("make volume %s: %w", r.ID, err)
	}
	defer unlock()
	existing, err := e.read(r.ID)
	if err == nil {
		return existing.mustEqual(r)
	}
	if !backingimage.Is(err, backingimage.NotFound) {
		return err
	}
	if err := e.stage(r, fill); err != nil {
		os.RemoveAll(e.layout.StagedVolume(r.ID)) // the next attempt would, too
		return e.explain("make volume "+r.ID, err)
	}
	klog.FromContext(ctx).V(2).Info("Made volume", "volume", r.ID, "bytes", r.Bytes, "from", r.From)
	return nil
}

// stage makes the volume's directory in staging and publishes it.
func (e *Engine) stage(r record, fill func(target *os.File, size int64) error) error {
	staged := e.layout.StagedVolume(r.ID)
	if err := os.Mkdir(staged, 0o700); errors.Is(err, os.ErrExist) {
		err = os.RemoveAll(staged) // half-made by a call that was killed
		if err == nil {
			err = os.Mkdir(staged, 0o700)
		}
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	p, err := newPublication(staged, r)
	if err != nil {
		return err
	}
	defer p.close()
	if err := fill(p.content, r.Bytes); err != nil {
		return err
	}
	if err := p.content.Truncate(r.Bytes); err != nil {
		return err
	}
	return p.publish(e.layout.Volume(r.ID))
}

// openSource opens the file that a clone starts from, with everything that was written to it.
func (e *Engine) openSource(from engine.From) (*os.File, error) {
	path := filepath.Join(e.layout.Image(from.Image), disk.ImageFile)
	what := "ready copy of image " + from.Image
	if from.Volume != "" {
		path, what = e.file(from.Volume), "volume "+from.Volume
	}
	if err := e.undamaged(from); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no %s on this disk", what)
	}
	if err != nil || from.Volume == "" {
		return f, err
	}
	if err := flushDevice(path); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// flushDevice writes what the volume's device, if it has one, caches to the volume's file.
func flushDevice(path string) error {
	d, attached, err := loop.Find(path)
	if err != nil || !attached || d.ReadOnly {
		return err
	}
	f, err := os.Open(d.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", d.Path, err)
	}
	return nil
}

// publication is a volume that is being made.
type publication struct {
	staged  string
	content *os.File
	record  *os.File
}

// newPublication makes the files of a volume in its staging directory. The record is on its way to the disk while the
// content is made.
func newPublication(staged string, r record) (*publication, error) {
	text, err := r.encode()
	if err != nil {
		return nil, err
	}
	p := &publication{staged: staged}
	if p.record, err = create(staged, disk.VolumeRecord); err != nil {
		return nil, err
	}
	if p.content, err = create(staged, disk.VolumeFile); err == nil {
		_, err = p.record.Write(text)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	unix.SyncFileRange(int(p.record.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // a hint; publish waits and checks
	return p, nil
}

func create(dir, name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

func (p *publication) close() {
	p.record.Close()
	if p.content != nil {
		p.content.Close()
	}
}

// publish gives the volume its name. When it returns the volume survives a power loss, and at no time would a
// power loss have left a volume of that name with less than all of it.
//
// Portably that takes a sync of each file and of both directories. XFS needs one: it logs every change of metadata (blocks shared
// by a clone, sizes, names) in order, and recovers a prefix of that order, so the sync that makes the last change durable (the
// new name) makes all earlier ones so. Only the record has data of its own; that is written out before the name is given. The
// log's commit is preceded by a flush of the device, which covers that data too.
func (p *publication) publish(volume string) error {
	if orderedLog(p.staged) {
		const written = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := unix.SyncFileRange(int(p.record.Fd()), 0, 0, written); err != nil {
			return os.NewSyscallError("sync_file_range", err)
		}
	} else if err := p.syncEach(); err != nil {
		return err
	}
	if err := os.Rename(p.staged, volume); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(volume))
}

func (p *publication) syncEach() error {
	if err := p.record.Sync(); err != nil {
		return err
	}
	if err := p.content.Sync(); err != nil {
		return err
	}
	return durable.SyncDir(p.staged)
}

// orderedLog reports whether the filesystem at path makes changes of metadata durable in the order in which they were made.
var orderedLog = func(path string) bool { // replaced in tests
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.XFS_SUPER_MAGIC
}
