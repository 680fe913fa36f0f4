package reflink

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/provisioner/engine"
)

// Delete removes a volume. An idle device goes with it.
func (e *Engine) Delete(ctx context.Context, id string) error {
	unlock, err := e.begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := loop.Detach(ctx, e.volumes.file(id)); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	if err := e.layout.Remove(e.layout.StagedFill(id)); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	return e.take(e.volumes, id)
}

// take removes what is on a shelf, or on its way there.
func (e *Engine) take(s shelf, id string) error {
	for _, dir := range []string{s.staged(id), s.dir(id)} {
		if err := e.layout.Remove(dir); err != nil {
			return fmt.Errorf("delete %s %s: %w", s.noun, id, err)
		}
	}
	return nil
}

// Attach makes the volume a block device.
func (e *Engine) Attach(ctx context.Context, id string, o engine.AttachOptions) (string, error) {
	unlock, err := e.begin(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := e.volumes.read(id); err != nil {
		return "", err
	}
	if o.SectorBytes == 0 && !o.Partitions {
		if o.SectorBytes, err = sectorBytes(e.volumes.file(id)); err != nil {
			return "", fmt.Errorf("attach volume %s: %w", id, err)
		}
	}
	device, err := loop.Attach(ctx, e.volumes.file(id), loop.Options{ReadOnly: o.ReadOnly, SectorBytes: o.SectorBytes, Partitions: o.Partitions})
	if err != nil {
		return "", fmt.Errorf("attach volume %s: %w", id, err)
	}
	return device, nil
}

// Detach removes the block device.
func (e *Engine) Detach(ctx context.Context, id string) error {
	unlock, err := e.begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := loop.Detach(ctx, e.volumes.file(id)); err != nil {
		return fmt.Errorf("detach volume %s: %w", id, err)
	}
	return nil
}

// Resize grows a volume. The file's size is the volume's; the record and the device follow it, after a kill too.
func (e *Engine) Resize(ctx context.Context, id string, bytes int64) error {
	unlock, err := e.begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	size, err := roundSize(id, bytes)
	if err != nil {
		return err
	}
	r, err := e.volumes.read(id)
	if err != nil {
		return err
	}
	if size > r.Bytes {
		if err := grow(e.volumes.file(id), size); err != nil {
			return e.explain("resize volume "+id, err)
		}
		klog.FromContext(ctx).V(2).Info("Resized volume", "volume", id, "from", r.Bytes, "to", size)
		r.Bytes = size
	}
	if err := e.rewrite(r); err != nil {
		return e.explain("resize volume "+id, err)
	}
	if err := loop.Refresh(e.volumes.file(id)); err != nil {
		return fmt.Errorf("resize volume %s: %w", id, err)
	}
	return nil
}

func grow(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// rewrite makes the stored record say what r says.
func (e *Engine) rewrite(r record) error {
	path := filepath.Join(e.layout.Volume(r.ID), disk.VolumeRecord)
	wanted, err := r.encode()
	if err != nil {
		return err
	}
	if stored, err := os.ReadFile(path); err == nil && string(stored) == string(wanted) {
		return nil
	}
	return durable.WriteFile(path, wanted, 0o600)
}

// Stat returns what is on disk.
func (e *Engine) Stat(ctx context.Context, id string) (engine.Info, error) {
	if err := e.volumes.check(id); err != nil {
		return engine.Info{}, err
	}
	r, err := e.volumes.read(id)
	if err != nil {
		return engine.Info{}, err
	}
	d, _, err := loop.Find(e.volumes.file(id))
	if err != nil && !backingimage.Is(err, backingimage.NotFound) {
		return engine.Info{}, fmt.Errorf("stat volume %s: %w", id, err)
	}
	return e.info(r, d)
}

// List returns every volume on the disk. One whose record cannot be read is listed by its ID and size, so that it is seen and
// can be deleted.
func (e *Engine) List(ctx context.Context) ([]engine.Info, error) {
	records, err := e.volumes.list(ctx)
	if err != nil {
		return nil, err
	}
	devices, err := loop.List()
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var infos []engine.Info
	for _, r := range records {
		info, err := e.info(r, devices...)
		if err != nil {
			return nil, fmt.Errorf("list volumes: %w", err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// info completes a record with what only the filesystem and the kernel know; the volume's device is one of those given.
func (e *Engine) info(r record, devices ...loop.Device) (engine.Info, error) {
	info := engine.Info{Volume: r.Volume, From: r.From}
	st, err := e.volumes.stat(r.ID)
	if err != nil || st == nil {
		return info, err
	}
	info.Bytes, info.UsedBytes = st.Size, st.Blocks*512
	for _, d := range devices {
		if d.BackingDev == st.Dev && d.BackingInode == st.Ino {
			info.Device = d.Path
		}
	}
	return info, nil
}

// begin checks the ID and excludes other calls for it.
func (e *Engine) begin(ctx context.Context, id string) (unlock func(), err error) {
	if err := e.volumes.check(id); err != nil {
		return nil, err
	}
	unlock, err = e.lock(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("wait for another call for volume %s: %w", id, err)
	}
	return unlock, nil
}
