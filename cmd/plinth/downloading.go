package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/transfer"
)

// downloading is an image on its way into a file.
type downloading struct {
	request   downloadRequest
	receiving *transfer.Receiving
	progress  *transferProgress

	manifest *manifest.Manifest
	bytes    int64  // of the content
	sha256   string // of what was written; "" for a sparse file
}

// run gets the image and writes it.
func (d *downloading) run(ctx context.Context, stdout io.Writer) (err error) {
	if d.manifest, err = d.receiving.Manifest(ctx); err != nil {
		return err
	}
	d.bytes = d.manifest.Bytes()
	for i := range d.manifest.Chunks() {
		if d.used(i) {
			_, length := d.manifest.Span(i)
			d.progress.total += length
		}
	}
	if d.request.file == "-" {
		return d.stream(ctx, stdout)
	}
	return d.write(ctx)
}

// used reports whether a chunk is not zeros.
func (d *downloading) used(index int64) bool { return !d.manifest.Digest(index).IsZero() }

// chunks gets the chunks for which wanted holds; of others that are not zeros it is known that they are there.
func (d *downloading) chunks(ctx context.Context, wanted func(index int64) (bool, error), use func(index int64, data []byte) error) error {
	return d.receiving.Chunks(ctx, d.manifest, func(index int64) (bool, error) {
		ok, err := wanted(index)
		if _, length := d.manifest.Span(index); err == nil && !ok && d.used(index) {
			d.progress.add(length)
		}
		return ok, err
	}, func(index int64, data []byte) error {
		d.progress.add(int64(len(data)))
		return use(index, data)
	})
}

// stream writes the image in order, and hashes it on the way.
func (d *downloading) stream(ctx context.Context, stdout io.Writer) error {
	sum := sha256.New()
	out := &hashedWriter{Writer: stdout, hash: sum}
	wanted := func(index int64) (bool, error) { return d.used(index), nil }
	if d.request.format == format.Raw {
		if err := d.streamRaw(ctx, out); err != nil {
			return err
		}
	} else {
		q, err := format.NewQCOW2Stream(out, d.bytes, d.used)
		if err != nil {
			return err
		}
		if err := d.chunks(ctx, wanted, func(index int64, data []byte) error { return q.Add(format.Chunk{Index: index, Data: data}) }); err != nil {
			return err
		}
		if err := q.Close(); err != nil {
			return err
		}
	}
	d.sha256 = hex.EncodeToString(sum.Sum(nil))
	return nil
}

func (d *downloading) streamRaw(ctx context.Context, out io.Writer) error {
	var at int64
	err := d.chunks(ctx, func(index int64) (bool, error) { return d.used(index), nil }, func(index int64, data []byte) error {
		offset, length := d.manifest.Span(index)
		if err := writeZeros(out, offset-at); err != nil {
			return err
		}
		at = offset + length
		_, err := out.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	return writeZeros(out, d.bytes-at)
}

func writeZeros(w io.Writer, bytes int64) error {
	zeros := make([]byte, min(bytes, 1<<20))
	for bytes > 0 {
		n, err := w.Write(zeros[:min(bytes, int64(len(zeros)))])
		if err != nil {
			return err
		}
		bytes -= int64(n)
	}
	return nil
}

// hashedWriter hashes what is written.
type hashedWriter struct {
	io.Writer
	hash hash.Hash
}

// Write implements io.Writer.
func (w *hashedWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.hash.Write(p[:n])
	return n, err
}

// write writes the image to FILE.part, which becomes FILE when it is complete and on disk.
func (d *downloading) write(ctx context.Context) error {
	part := d.request.file + ".part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	defer f.Close()
	fill := d.writeRaw
	if d.request.format == format.QCOW2 {
		fill = d.writeQCOW2
	}
	if err := fill(ctx, f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return durable.Rename(part, d.request.file)
}

// writeRaw makes the file the content: what of it is there and good stays.
func (d *downloading) writeRaw(ctx context.Context, f *os.File) error {
	if err := f.Truncate(d.bytes); err != nil {
		return err
	}
	buffer := make([]byte, manifest.ChunkBytes)
	return d.chunks(ctx, func(index int64) (bool, error) { return d.missing(f, index, buffer) }, func(index int64, data []byte) error {
		offset, _ := d.manifest.Span(index)
		_, err := f.WriteAt(data, offset)
		return err
	})
}

// missing reports whether a chunk has to be fetched. One that must be zeros and is not is made so.
func (d *downloading) missing(f *os.File, index int64, buffer []byte) (bool, error) {
	offset, length := d.manifest.Span(index)
	if emptyAt(f, offset, length) {
		return d.used(index), nil
	}
	chunk := buffer[:length]
	if _, err := f.ReadAt(chunk, offset); err != nil {
		return false, err
	}
	if manifest.Sum(chunk) == d.manifest.Digest(index) {
		return false, nil
	}
	if d.used(index) {
		return true, nil
	}
	clear(chunk)
	_, err := f.WriteAt(chunk, offset)
	return false, err
}

// emptyAt reports whether nothing is stored there; false when that cannot be found out.
func emptyAt(f *os.File, offset, length int64) bool {
	data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && data >= offset+length
}

// writeQCOW2 begins anew: where a chunk went depends on those before it.
func (d *downloading) writeQCOW2(ctx context.Context, f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	q := format.NewQCOW2File(f, d.bytes)
	err := d.chunks(ctx, func(index int64) (bool, error) { return d.used(index), nil }, func(index int64, data []byte) error {
		return q.Add(format.Chunk{Index: index, Data: data})
	})
	if err != nil {
		return err
	}
	if err := q.Close(); err != nil {
		return err
	}
	sum := sha256.New()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(sum, readerUntil{ctx, f}); err != nil {
		return err
	}
	d.sha256 = hex.EncodeToString(sum.Sum(nil))
	return nil
}
