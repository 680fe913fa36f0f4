package reflink

import (
	"context"
	"errors"
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
	if _, err := e.read(id); err != nil {
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
	content, err := os.Open(e.file(id))
	if err != nil {
		return err
	}
	defer content.Close()
	device, _, err := loop.Find(e.file(id))
	if err != nil {
		return err
	}
	err = freeze.While(ctx, device.Path, e.layout.Frozen(id), func(ctx context.Context) error {
		if err := flushDevice(e.file(id)); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return ficlone(int(part.Fd()), int(content.Fd()))
	})
	if err != nil {
		return err
	}
	if err := part.Sync(); err != nil {
		return err
	}
	return durable.Rename(part.Name(), path)
}
