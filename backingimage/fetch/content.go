package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
	"plinth.dev/plinth/backingimage/source"
)

// content makes the content of the image that is there, complete and synced, and returns its manifest.
func (d *download) content(ctx context.Context) (*manifest.Manifest, error) {
	if err := d.takeLent(); err != nil {
		return nil, err
	}
	from := &image{info: d.info, file: d.file, bytes: d.stream.bytes}
	if d.info.Packed() {
		from = &d.inside
	}
	d.warning = from.info.Warning
	switch {
	case from.info.Foreign():
		return d.convertForeign(ctx, from)
	case from.info.Format == format.QCOW2:
		return d.convert(ctx, from)
	}
	return d.finishRaw(from)
}

// finishRaw settles content that is where it stays. A VHD of fixed size shows now what it is, and loses its footer.
func (d *download) finishRaw(from *image) (*manifest.Manifest, error) {
	bytes := format.Padded(from.bytes)
	if footer := make([]byte, format.FooterBytes); from.bytes > format.FooterBytes {
		if _, err := from.file.ReadAt(footer, from.bytes-format.FooterBytes); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read the end of %s: %w", from.file.Name(), err)
		}
		if format.FixedVHD(footer, from.bytes) {
			bytes = from.bytes - format.FooterBytes
			if err := d.cutFooter(from, bytes); err != nil {
				return nil, err
			}
		}
	}
	if err := settle(from.file, bytes); err != nil {
		return nil, err
	}
	return d.digests.Manifest(bytes), nil
}

// cutFooter makes a VHD of fixed size out of what was taken for raw, by taking the digest of the last chunk anew.
func (d *download) cutFooter(from *image, bytes int64) error {
	from.info.Format = format.VHD
	if d.info.Packed() {
		d.inside.info.Format = format.VHD
	} else {
		d.info.Format = format.VHD
	}
	index := (bytes - 1) / manifest.ChunkBytes
	chunk := make([]byte, bytes-index*manifest.ChunkBytes)
	if _, err := from.file.ReadAt(chunk, index*manifest.ChunkBytes); err != nil {
		return fmt.Errorf("read the end of %s: %w", from.file.Name(), err)
	}
	d.digests.Add(index, chunk)
	return nil
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
		Format: d.formatName(), Warning: d.warning, Resolved: resolved, SourceBytes: d.stream.bytes, VirtualBytes: m.Bytes(),
		Checksum: d.hashes.hex(source.SHA512), ContentDigest: m.ContentDigest(),
	}
}

// eachChunk calls work for every chunk of a manifest, from two goroutines, in no order.
func eachChunk(ctx context.Context, m *manifest.Manifest, work func(index int64, buffer []byte) error) error {
	return eachIndex(ctx, func(yield func(int64) error) error {
		for i := range m.Chunks() {
			if err := yield(i); err != nil {
				return err
			}
		}
		return nil
	}, work)
}

// eachIndex calls work for every index that list yields, from two goroutines, in no order.
func eachIndex(ctx context.Context, list func(yield func(int64) error) error, work func(index int64, buffer []byte) error) error {
	group, ctx := parallel.WithContext(ctx)
	indexes := make(chan int64)
	group.Go(func() error {
		defer close(indexes)
		return list(func(i int64) error {
			select {
			case indexes <- i:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
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
