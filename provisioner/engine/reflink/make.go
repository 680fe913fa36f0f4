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
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/provisioner/engine"
)

var ficlone = unix.IoctlFileClone // replaced in tests

// Create makes an empty volume.
func (e *Engine) Create(ctx context.Context, v engine.Volume) error {
	return e.make(ctx, record{Volume: v}, func(*os.File) error { return nil })
}

// Clone makes a volume of the content of an image, a volume or a snapshot.
func (e *Engine) Clone(ctx context.Context, v engine.Volume, from engine.From) error {
	if err := e.checkFrom(v, from); err != nil {
		return err
	}
	return e.make(ctx, record{Volume: v, From: from}, func(target *os.File) error {
		if from.Volume != "" {
			if _, err := e.volumes.read(from.Volume); err != nil {
				return err
			}
			return e.still(ctx, from.Volume, target)
		}
		source, err := e.openSource(from)
		if err != nil {
			return err
		}
		defer source.Close()
		if err := ficlone(int(target.Fd()), int(source.Fd())); err != nil {
			return err
		}
		return e.undamaged(from) // again: damage may have been found meanwhile
	})
}

// Import makes a volume of the content of a file.
func (e *Engine) Import(ctx context.Context, v engine.Volume, from engine.From, path string) error {
	if err := e.checkFrom(v, from); err != nil {
		return err
	}
	return e.make(ctx, record{Volume: v, From: from}, func(target *os.File) error {
		source, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return backingimage.Errorf(backingimage.NotFound, "there is no %s to make the volume of", path)
		}
		if err != nil {
			return err
		}
		defer source.Close()
		return ficlone(int(target.Fd()), int(source.Fd()))
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

func (e *Engine) checkFrom(v engine.Volume, from engine.From) error {
	if from.Volume != "" && from.Volume == v.ID {
		return backingimage.Errorf(backingimage.Invalid, "volume %s: it cannot be a clone of itself", v.ID)
	}
	return e.checkContent(from)
}

// checkContent refuses what does not name one content.
func (e *Engine) checkContent(of engine.From) error {
	switch of {
	case engine.From{Image: of.Image}:
		return disk.CheckName("image UID", of.Image)
	case engine.From{Volume: of.Volume}:
		return e.volumes.check(of.Volume)
	case engine.From{Snapshot: of.Snapshot}:
		return e.snapshots.check(of.Snapshot)
	}
	return backingimage.Errorf(backingimage.Invalid, "a content is that of one image, one volume or one snapshot: got image %q, volume %q, snapshot %q", of.Image, of.Volume, of.Snapshot)
}

// make makes the volume that r describes unless it exists; fill writes its first bytes.
func (e *Engine) make(ctx context.Context, r record, fill func(target *os.File) error) error {
	if err := e.volumes.check(r.ID); err != nil {
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
	existing, err := e.volumes.read(r.ID)
	if err == nil {
		return existing.mustEqual(r)
	}
	if !backingimage.Is(err, backingimage.NotFound) {
		return err
	}
	if err := e.stage(e.volumes, r.ID, func(p *publication) error { return p.fillVolume(r, fill) }); err != nil {
		return e.explain("make volume "+r.ID, err)
	}
	klog.FromContext(ctx).V(2).Info("Made volume", "volume", r.ID, "bytes", r.Bytes, "from", r.From)
	return nil
}

// fillVolume fills a volume of the size that r has. The record is on its way to the disk while the content is made.
func (p *publication) fillVolume(r record, fill func(target *os.File) error) error {
	if err := p.describe(r); err != nil {
		return err
	}
	if err := fill(p.content); err != nil {
		return err
	}
	if info, err := p.content.Stat(); err != nil {
		return err
	} else if r.Bytes < info.Size() {
		return backingimage.Errorf(backingimage.OutOfRange, "volume %s: %d bytes are less than the %d bytes of what it is cloned from: ask for at least that", r.ID, r.Bytes, info.Size())
	}
	return p.content.Truncate(r.Bytes)
}

// stage makes a directory of a shelf in staging and publishes it.
func (e *Engine) stage(s shelf, id string, fill func(*publication) error) (err error) {
	staged := s.staged(id)
	defer func() {
		if err != nil {
			os.RemoveAll(staged) // the next attempt would, too
		}
	}()
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
	p, err := newPublication(s, id)
	if err != nil {
		return err
	}
	defer p.close()
	if err := fill(p); err != nil {
		return err
	}
	return p.publish(s.dir(id))
}

// openSource opens the file of a content that does not change.
func (e *Engine) openSource(from engine.From) (*os.File, error) {
	path, what := filepath.Join(e.layout.Image(from.Image), disk.ImageFile), "ready copy of image "+from.Image
	if from.Snapshot != "" {
		path, what = e.snapshots.file(from.Snapshot), "snapshot "+from.Snapshot
	}
	if err := e.undamaged(from); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no %s on this disk", what)
	}
	return f, err
}

// publication is a volume or a snapshot that is being made.
type publication struct {
	staged  string
	content *os.File
	record  *os.File
}

// newPublication makes the files of a volume or a snapshot in its staging directory.
func newPublication(s shelf, id string) (*publication, error) {
	p := &publication{staged: s.staged(id)}
	var err error
	if p.record, err = create(p.staged, s.record); err != nil {
		return nil, err
	}
	if p.content, err = create(p.staged, s.content); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// describe writes the record.
func (p *publication) describe(r record) error {
	text, err := r.encode()
	if err != nil {
		return err
	}
	if _, err := p.record.Write(text); err != nil {
		return err
	}
	unix.SyncFileRange(int(p.record.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE) // a hint; publish waits and checks
	return nil
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

// publish gives the volume or snapshot its name. When it returns it survives a power loss, and at no time would a
// power loss have left one of that name with less than all of it.
//
// Portably that takes a sync of each file and of both directories. XFS needs one: it logs every change of metadata (blocks shared
// by a clone, sizes, names) in order, and recovers a prefix of that order, so the sync that makes the last change durable (the
// new name) makes all earlier ones so. Only the record has data of its own; that is written out before the name is given. The
// log's commit is preceded by a flush of the device, which covers that data too.
func (p *publication) publish(dir string) error {
	if orderedLog(p.staged) {
		const written = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := unix.SyncFileRange(int(p.record.Fd()), 0, 0, written); err != nil {
			return os.NewSyscallError("sync_file_range", err)
		}
	} else if err := p.syncEach(); err != nil {
		return err
	}
	if err := os.Rename(p.staged, dir); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(dir))
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
