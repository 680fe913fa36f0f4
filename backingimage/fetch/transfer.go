package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/format/foreign"
	"plinth.dev/plinth/backingimage/format/unpack"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// transfer moves bytes from the stream to the disk until the source ends, and checks them. What is packed is unpacked
// beside it.
func (d *download) transfer(ctx context.Context) error {
	first, last, err := d.open(ctx)
	if err != nil {
		return err
	}
	if !d.info.Packed() {
		return d.receive(ctx, first, last)
	}
	group, ctx := parallel.WithContext(ctx)
	d.inside.close()
	d.tail = newTail(ctx, d.bytesFile(), d.stream.offset-int64(len(first)))
	group.Go(func() error { return d.unpack(ctx) })
	group.Go(func() error {
		if err := d.receive(ctx, first, last); err != nil {
			return err
		}
		d.arrived = d.job.Clock.Now()
		d.meter.step(Unpacking, d.tail.offset.Load(), d.stream.bytes)
		d.tail.end()
		return nil
	})
	return group.Wait()
}

// receive brings the source file, beginning with what was read of it already, and compares it with its checksum.
func (d *download) receive(ctx context.Context, first []byte, last bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p, ctx := newPipeline(ctx, sourceBlocks, d.save, d.stages()...)
	context.AfterFunc(ctx, cancel) // a stage that fails must not wait for the network
	p.group.Go(func() error {
		defer p.end()
		return d.read(ctx, p, first, last)
	})
	if err := p.group.Wait(); err != nil {
		return err
	}
	d.stream.close()
	return d.hashes.check(d.want, d.job.Source)
}

// open decides the format by the source's first bytes, unless a checkpoint did, and makes the file they go to. It
// returns the bytes it had to read for that, and whether they are all.
func (d *download) open(ctx context.Context) (head []byte, last bool, err error) {
	if d.info.Format != "" {
		return nil, false, nil
	}
	head = make([]byte, format.HeadBytes)
	n, err := d.stream.fill(ctx, head)
	last = errors.Is(err, io.EOF)
	if err != nil && !last {
		return nil, false, err
	}
	if last {
		d.stream.bytes = int64(n)
	}
	probe := format.Probe
	if d.job.ArchiveFolder != "" {
		probe = format.ProbeArchive
	}
	d.info, err = probe(head[:n], d.stream.bytes, d.job.Limits)
	if err == nil {
		err = d.ready(d.info)
	}
	if err != nil {
		return nil, false, fmt.Errorf("download %s: %w", d.job.Source, err)
	}
	if d.job.ArchiveFolder == "" {
		d.hint = unpack.Size(d.info.Format, head[:n])
	}
	d.announce()
	return head[:n], last, d.create()
}

// ready refuses, before it is downloaded, what this machine cannot convert.
func (d *download) ready(info format.Info) error {
	if !info.Foreign() {
		return nil
	}
	return foreign.Ready(info.Format)
}

// create makes the file that the bytes go to as they come.
func (d *download) create() (err error) {
	if d.info.Format != format.Raw {
		d.file, err = os.OpenFile(d.staged.path(sourceFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	} else {
		var content *contentFile
		if content, err = newContentFile(d.staged.path(disk.ImageFile), d.info.VirtualBytes, d.digests); err == nil {
			d.file = content.file
		}
	}
	if err == nil {
		d.borrow()
	}
	return err
}

// stages that every block passes.
func (d *download) stages() []stage {
	var stages []stage
	for algorithm, hash := range d.hashes {
		stages = append(stages, &hashStage{algorithm: algorithm, hashes: d.hashes, hash: hash})
	}
	content := &contentFile{file: d.file, digests: d.digests}
	switch {
	case d.lent != nil && d.info.Format == format.Raw:
		return append(stages, &lentStage{content: content})
	case d.lent != nil:
		return append(stages, &lentStage{tail: d.tail})
	case d.info.Format == format.Raw:
		return append(stages, &contentStage{content})
	}
	return append(stages, &sourceStage{d.file, d.tail})
}

// read fills blocks, beginning with what was read already, and gives them to the stages.
func (d *download) read(ctx context.Context, p *pipeline, head []byte, last bool) error {
	for index := d.stream.offset / manifest.ChunkBytes; ; index++ {
		b, err := p.take(ctx)
		if err != nil {
			return err
		}
		b.index, b.length = index, copy(b.buffer[:], head)
		if !last {
			var n int
			n, err = d.stream.fill(ctx, b.buffer[b.length:])
			b.length += n
			last = errors.Is(err, io.EOF)
		}
		head = nil
		if err != nil && !last {
			return d.interrupted(ctx, p, b.offset(), err)
		}
		if err := d.checkLimits(); err != nil {
			return err
		}
		if b.length > 0 {
			if err := p.give(ctx, b); err != nil {
				return err
			}
		}
		if last {
			d.stream.bytes = d.stream.offset
			return nil
		}
		if err := d.checkpoint(ctx, p); err != nil {
			return err
		}
	}
}

// checkLimits is for sources that do not tell their size, or not the truth.
func (d *download) checkLimits() error {
	if d.info.Format == format.Raw {
		if err := d.job.Limits.CheckVirtual(uint64(d.stream.offset)); err != nil {
			return err
		}
	}
	return d.job.Limits.CheckSource(d.stream.offset)
}

// checkpoint sends a mark when it is time for one and the last one is done with.
func (d *download) checkpoint(ctx context.Context, p *pipeline) error {
	due := d.stream.offset-d.savedOffset >= d.job.CheckpointBytes || d.job.Clock.Since(d.savedTime) >= d.job.CheckpointInterval
	if !due || !d.saving.CompareAndSwap(false, true) {
		return nil
	}
	_, err := d.mark(ctx, p, d.stream.offset)
	return err
}

func (d *download) mark(ctx context.Context, p *pipeline, offset int64) (*mark, error) {
	d.savedOffset, d.savedTime = offset, d.job.Clock.Now()
	return p.mark(ctx, position{offset: offset, bytes: d.stream.bytes, validator: d.stream.validator})
}

// interrupted keeps what came until the source fell silent, then gives up with the cause. offset is the end of the
// last whole block.
func (d *download) interrupted(ctx context.Context, p *pipeline, offset int64, cause error) error {
	if !backingimage.Is(cause, backingimage.NotReady) || offset == d.savedOffset || !d.saving.CompareAndSwap(false, true) {
		return cause
	}
	m, err := d.mark(ctx, p, offset)
	if err != nil {
		return cause
	}
	select {
	case <-m.done:
	case <-ctx.Done():
	}
	return cause
}
