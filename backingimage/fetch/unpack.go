package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/format/unpack"
)

// image is the image's own file: the source file, or what was inside of it.
type image struct {
	info  format.Info
	file  *os.File
	bytes int64
}

func (i *image) close() {
	if i.file != nil {
		i.file.Close()
	}
	*i = image{}
}

// insideBlocks are the blocks between the decoder and the disk: one is filled while another is written. More would only leave the
// processor's caches before they are.
const insideBlocks = 2

// unpack makes the image out of the packed source file, which it reads as it grows. What a killed attempt unpacked is
// made anew: a decoder's state cannot be stored, and unpacking from the disk is faster than downloading.
func (d *download) unpack(ctx context.Context) error {
	from, err := unpack.Open(d.info.Format, d.tail)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", d.job.Source, err)
	}
	from = &checked{from, func() error { return d.checkTime(ctx) }}
	if d.job.ArchiveFolder == "" {
		err = d.unpackImage(ctx, from, -1)
	} else {
		err = d.unpackArchive(ctx, from)
	}
	if err != nil {
		return fmt.Errorf("unpack %s: %w", d.job.Source, err)
	}
	return nil
}

// Time that unpacking may take when all of the source is there: much more than any image needs, and an end for a bomb that
// stays within the limits of size but gives its zeros slowly, as xz and bzip2 do.
const (
	unpackTime        = 4 * time.Hour
	unpackBytesSecond = 256 << 10 // of the source file; so much longer
)

// checkTime returns why unpacking has to end before it is done.
func (d *download) checkTime(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !d.tail.ended.Load() {
		return nil
	}
	most := unpackTime + time.Duration(d.stream.bytes/unpackBytesSecond)*time.Second
	if d.job.Clock.Since(d.arrived) > most {
		return backingimage.Errorf(backingimage.OutOfRange, "it is not done after %s and %s, so that it looks like a file made to keep us busy; publish the image as qcow2", most.Round(time.Minute), backingimage.SizeText(d.inside.bytes))
	}
	return nil
}

// checked is a reader that asks before each read whether it may go on.
type checked struct {
	io.Reader
	check func() error
}

func (c *checked) Read(p []byte) (int, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	return c.Reader.Read(p)
}

func (d *download) unpackArchive(ctx context.Context, from io.Reader) error {
	archive := unpack.NewArchive(from, d.job.ArchiveFolder, d.job.Limits.MaxSourceBytes)
	inside, bytes, err := archive.Image()
	if err != nil {
		return err
	}
	if err := d.unpackImage(ctx, inside, bytes); err != nil {
		return err
	}
	return archive.End()
}

// unpackImage writes the image that was packed: raw content to where it stays, anything else to a file of its own, to be
// converted. bytes is its size, -1 when that is not known.
func (d *download) unpackImage(ctx context.Context, from io.Reader, bytes int64) error {
	head := make([]byte, format.HeadBytes)
	n, err := io.ReadFull(from, head)
	last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !last {
		return err
	}
	if last {
		bytes = int64(n)
	}
	if err := d.probeInside(head[:n], bytes); err != nil {
		return err
	}
	s, err := d.insideStage()
	if err != nil {
		return err
	}
	p, ctx := newPipeline(ctx, insideBlocks, nil, s)
	p.group.Go(func() error {
		defer p.end()
		return d.readInside(ctx, p, head[:n], from)
	})
	return p.group.Wait()
}

// probeInside decides what was packed, and announces it.
func (d *download) probeInside(head []byte, bytes int64) (err error) {
	if d.inside.info, err = format.ProbeInside(d.info.Format, head, bytes, d.job.Limits); err != nil {
		return err
	}
	if d.inside.info.Format == format.Raw && bytes < 0 && d.hint >= 0 {
		if err := d.job.Limits.CheckVirtual(uint64(d.hint)); err != nil {
			return err
		}
		d.inside.info.VirtualBytes = format.Padded(d.hint)
	}
	if err := d.ready(d.inside.info); err != nil {
		return err
	}
	info := d.inside.info
	d.meter.say(func(p *Progress) { p.Format, p.VirtualBytes = d.formatName(), info.VirtualBytes })
	return nil
}

// insideStage makes the file that the image goes to, and what puts it there.
func (d *download) insideStage() (stage, error) {
	if d.inside.info.Format != format.Raw {
		f, err := os.OpenFile(d.staged.path(insideFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		d.inside.file = f
		return &sourceStage{file: f}, err
	}
	content, err := newContentFile(d.staged.path(disk.ImageFile), d.inside.info.VirtualBytes, d.digests)
	if err != nil {
		return nil, err
	}
	d.inside.file = content.file
	return &contentStage{content}, nil
}

// readInside fills blocks with what comes out of the decoder, beginning with what was read already.
func (d *download) readInside(ctx context.Context, p *pipeline, head []byte, from io.Reader) error {
	for index, last := int64(0), false; !last; index++ {
		b, err := p.take(ctx)
		if err != nil {
			return err
		}
		b.index, b.length = index, copy(b.buffer[:], head)
		head = nil
		n, err := io.ReadFull(from, b.buffer[b.length:])
		b.length += n
		last = errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return err
		}
		d.inside.bytes = b.offset() + int64(b.length)
		if err := d.checkInside(); err != nil {
			return err
		}
		if d.tail.ended.Load() {
			d.meter.at(d.tail.offset.Load())
		}
		if b.length > 0 {
			if err := p.give(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkInside bounds what comes out, whatever goes in.
func (d *download) checkInside() error {
	if d.inside.info.Format == format.Raw {
		return d.job.Limits.CheckVirtual(uint64(d.inside.bytes))
	}
	return d.job.Limits.CheckSource(d.inside.bytes)
}

// formatName is the format as it is recorded: the image's, and that of its packing behind it.
func (d *download) formatName() string {
	switch {
	case !d.info.Packed():
		return d.info.Format
	case d.inside.info.Format == "":
		return d.info.Format
	case d.job.ArchiveFolder != "" && d.info.Format != format.Tar:
		return d.inside.info.Format + "+" + format.Tar + "+" + d.info.Format
	}
	return d.inside.info.Format + "+" + d.info.Format
}
