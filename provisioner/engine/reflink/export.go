package reflink

import (
	"context"
	"errors"
	"fmt"
	"os"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/disk/freeze"
	"plinth.dev/plinth/backingimage/disk/loop"
	"plinth.dev/plinth/backingimage/durable"
)

// Export makes a file of the volume's content at one moment.
func (e *Engine) Export(ctx context.Context, id, path string) error {
	unlock, err := e.begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := e.volumes.read(id); err != nil {
		return err
	}
	if err := e.export(ctx, id, path); err != nil {
		return e.explain("export volume "+id, err)
	}
	klog.FromContext(ctx).V(2).Info("Exported volume", "volume", id, "to", path)
	return nil
}

func (e *Engine) export(ctx context.Context, id, path string) (err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	part, err := os.OpenFile(path+".part", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		part.Close()
		if err != nil {
			os.Remove(part.Name()) // the next attempt truncates it
		}
	}()
	if err := e.still(ctx, id, part); err != nil {
		return err
	}
	if err := part.Sync(); err != nil {
		return err
	}
	return durable.Rename(part.Name(), path)
}

// still makes target's content that of the volume at one moment.
func (e *Engine) still(ctx context.Context, id string, target *os.File) error {
	content, err := os.Open(e.volumes.file(id))
	if err != nil {
		return err
	}
	defer content.Close()
	device, attached, err := loop.Find(e.volumes.file(id))
	if err != nil {
		return err
	}
	return freeze.While(ctx, device.Path, e.layout.Frozen(id), func(ctx context.Context) error {
		if attached && !device.ReadOnly {
			if err := flush(device.Path); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return ficlone(int(target.Fd()), int(content.Fd()))
	})
}

// flush writes what a device caches to the volume's file.
func flush(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flush %s: %w", device, err)
	}
	return nil
}
