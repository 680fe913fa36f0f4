package fetch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/format/foreign"
	"plinth.dev/plinth/backingimage/manifest"
)

// convert turns the qcow2 file into raw content.
func (d *download) convert(ctx context.Context, from *image) (*manifest.Manifest, error) {
	qcow2, err := format.Open(readOnce{from.file}, from.bytes, d.job.Limits)
	if err != nil {
		return nil, err
	}
	bytes := qcow2.VirtualBytes()
	content, err := newContentFile(d.staged.path(disk.ImageFile), bytes, d.digests)
	if err != nil {
		return nil, err
	}
	defer content.file.Close()
	content.origin = from.file
	d.meter.step(Converting, 0, bytes)
	err = qcow2.Convert(ctx, func(chunk format.Chunk) error {
		d.meter.at(chunk.Index * manifest.ChunkBytes)
		return content.store(chunk)
	})
	if err != nil {
		return nil, fmt.Errorf("convert: %w", err)
	}
	if err := settle(content.file, bytes); err != nil {
		return nil, err
	}
	d.meter.at(bytes)
	return d.digests.Manifest(bytes), nil
}

// readOnce is a file whose every byte is read once. What was read is dropped from memory, where the content that is made
// of it then finds room at once.
type readOnce struct{ *os.File }

func (f readOnce) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.File.ReadAt(p, offset)
	dropCache(f.File, offset, int64(n))
	return n, err
}

// convertForeign turns another hypervisor's disk into raw content. qemu-img writes it; its digests are taken afterwards, of
// what was written only.
func (d *download) convertForeign(ctx context.Context, from *image) (*manifest.Manifest, error) {
	drive := foreign.Image{Format: from.info.Format, Path: from.file.Name()}
	bytes, err := drive.Inspect(ctx, d.job.Limits)
	if err != nil {
		return nil, err
	}
	content, err := newContentFile(d.staged.path(disk.ImageFile), bytes, d.digests)
	if err != nil {
		return nil, err
	}
	defer content.file.Close()
	d.meter.say(func(p *Progress) { p.Step, p.Bytes, p.Total, p.VirtualBytes = Converting, 0, bytes, bytes })
	stop := d.watch(content.file)
	err = drive.Convert(ctx, content.file.Name(), bytes)
	stop()
	if err != nil {
		return nil, err
	}
	if err := digestData(ctx, content.file, bytes, d.digests); err != nil {
		return nil, fmt.Errorf("compute digests of %s: %w", content.file.Name(), err)
	}
	if err := settle(content.file, bytes); err != nil {
		return nil, err
	}
	d.meter.at(bytes)
	return d.digests.Manifest(bytes), nil
}

// watch reports how much of a file another process has written, until it is stopped.
func (d *download) watch(f *os.File) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(pause):
			}
			if info, err := f.Stat(); err == nil {
				d.meter.at(min(info.Sys().(*syscall.Stat_t).Blocks*512, info.Size()))
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// digestData takes the digests of the chunks of a file that have data; a hole's is known.
func digestData(ctx context.Context, f *os.File, bytes int64, digests *manifest.Builder) error {
	list := func(yield func(int64) error) error { return eachDataChunk(f, bytes, yield) }
	return eachIndex(ctx, list, func(index int64, buffer []byte) error {
		offset := index * manifest.ChunkBytes
		chunk := buffer[:min(manifest.ChunkBytes, bytes-offset)]
		if _, err := f.ReadAt(chunk, offset); err != nil {
			return err
		}
		digests.Add(index, chunk)
		return nil
	})
}

// eachDataChunk yields the indexes of the chunks of a file that are not all hole, in order.
func eachDataChunk(f *os.File, bytes int64, yield func(int64) error) error {
	for index := int64(0); index*manifest.ChunkBytes < bytes; index++ {
		data, err := unix.Seek(int(f.Fd()), index*manifest.ChunkBytes, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		index = data / manifest.ChunkBytes
		if err := yield(index); err != nil {
			return err
		}
	}
	return nil
}
