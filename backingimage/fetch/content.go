package fetch

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
)

// content makes the content of the downloaded file, complete and synced, and returns its manifest.
func (d *download) content(ctx context.Context) (*manifest.Manifest, error) {
	if d.info.Format == format.QCOW2 {
		return d.convert(ctx)
	}
	bytes := format.Padded(d.stream.bytes)
	if err := settle(d.file, bytes); err != nil {
		return nil, err
	}
	return d.digests.Manifest(bytes), nil
}

// convert turns the qcow2 file into raw content.
func (d *download) convert(ctx context.Context) (*manifest.Manifest, error) {
	qcow2, err := format.Open(readOnce{d.file}, d.stream.bytes, d.job.Limits)
	if err != nil {
		return nil, err
	}
	bytes := qcow2.VirtualBytes()
	content, err := newContentFile(d.staged.path(disk.ImageFile), bytes, d.digests)
	if err != nil {
		return nil, err
	}
	defer content.file.Close()
	content.origin = d.file
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

// settle gives a finished content its size and puts it on disk.
func settle(f *os.File, bytes int64) error {
	if err := f.Truncate(bytes); err != nil {
		return fmt.Errorf("set the size of %s: %w", f.Name(), err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return nil
}

// result describes the finished download.
func (d *download) result(m *manifest.Manifest) Result {
	resolved := ""
	if r, ok := d.job.Source.(source.Resolver); ok {
		resolved = r.Resolved()
	}
	return Result{
		Format: d.info.Format, Resolved: resolved, SourceBytes: d.stream.bytes, VirtualBytes: m.Bytes(),
		Checksum: d.hashes.hex(source.SHA512), ContentDigest: m.ContentDigest(),
	}
}

// eachChunk calls work for every chunk of a manifest, from two goroutines, in no order.
func eachChunk(ctx context.Context, m *manifest.Manifest, work func(index int64, buffer []byte) error) error {
	group, ctx := errgroup.WithContext(ctx)
	indexes := make(chan int64)
	group.Go(func() error {
		defer close(indexes)
		for i := range m.Chunks() {
			select {
			case indexes <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range 2 {
		group.Go(func() error {
			buffer := make([]byte, manifest.ChunkBytes)
			for i := range indexes {
				if err := work(i, buffer); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}
