package reflink

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/provisioner/engine"
)

// Fill makes a volume whose content comes by and by. Its record is written when the file is ready to be filled, so that one without a
// record is begun anew.
func (e *Engine) Fill(ctx context.Context, v engine.Volume, from engine.From, fill func(f *os.File, again bool) error) error {
	if from != (engine.From{}) && from != (engine.From{Image: from.Image}) {
		return backingimage.Errorf(backingimage.Invalid, "volume %s: what is filled begins as an image or empty", v.ID)
	}
	unlock, err := e.begin(ctx, v.ID)
	if err != nil {
		return err
	}
	defer unlock()
	r := record{Volume: v, From: from}
	if r.Bytes, err = roundSize(v.ID, v.Bytes); err != nil {
		return err
	}
	if existing, err := e.volumes.read(v.ID); err == nil {
		return existing.mustEqual(r)
	} else if !backingimage.Is(err, backingimage.NotFound) {
		return err
	}
	if err := e.fill(r, fill); err != nil {
		return e.explain("fill volume "+v.ID, err)
	}
	klog.FromContext(ctx).V(2).Info("Filled volume", "volume", v.ID, "bytes", r.Bytes)
	return nil
}

func (e *Engine) fill(r record, fill func(f *os.File, again bool) error) error {
	dir := e.layout.StagedFill(r.ID)
	again, err := e.isStaged(dir, r)
	if err != nil {
		return err
	}
	if !again {
		if err := e.stageFill(dir, r); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, e.volumes.content), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fill(f, again); err != nil {
		return err
	}
	if err := f.Truncate(r.Bytes); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return durable.Rename(dir, e.volumes.dir(r.ID))
}

// isStaged reports whether the file of an earlier Fill of the same volume is there.
func (e *Engine) isStaged(dir string, r record) (bool, error) {
	wanted, err := r.encode()
	if err != nil {
		return false, err
	}
	stored, err := os.ReadFile(filepath.Join(dir, e.volumes.record))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return string(stored) == string(wanted), err
}

// stageFill makes the file that is to be filled, and then its record.
func (e *Engine) stageFill(dir string, r record) error {
	if err := e.layout.Remove(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	f, err := create(dir, e.volumes.content)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.From.Image != "" {
		if err := e.cloneInto(f, r); err != nil {
			return err
		}
	}
	if err := f.Truncate(r.Bytes); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	text, err := r.encode()
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, e.volumes.record), text, 0o600)
}

// cloneInto gives a file the content of the record's image.
func (e *Engine) cloneInto(f *os.File, r record) error {
	source, err := e.openSource(r.From)
	if err != nil {
		return err
	}
	defer source.Close()
	if info, err := source.Stat(); err != nil {
		return err
	} else if r.Bytes < info.Size() {
		return backingimage.Errorf(backingimage.OutOfRange, "volume %s: %d bytes are less than the %d bytes of its image: ask for at least that", r.ID, r.Bytes, info.Size())
	}
	if err := ficlone(int(f.Fd()), int(source.Fd())); err != nil {
		return err
	}
	return e.undamaged(r.From) // again: damage may have been found meanwhile
}
