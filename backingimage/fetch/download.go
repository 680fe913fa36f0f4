package fetch

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// download brings a source file into the staging directory.
type download struct {
	job    *Job
	want   wanted
	meter  *meter
	staged staging
	stream *stream

	info        format.Info // Format is empty until the first bytes are there
	file        *os.File
	lent        *os.File // the source's own file, where its blocks can be shared; see lend.go
	hashes      hashes
	digests     *manifest.Builder
	savedChunks int64

	// Of a packed source file:
	tail    *tail     // feeds the decoder; nil when nothing is packed
	hint    int64     // bytes inside, as its first bytes say; -1 when they do not
	inside  image     // what was inside
	arrived time.Time // when all of the source file was there; set before the tail ends

	warning string // what of the image was left out

	saving      atomic.Bool // a checkpoint is on its way
	savedOffset int64       // where the last one was begun
	savedTime   time.Time
}

func newDownload(job *Job, want wanted, m *meter) *download {
	d := &download{job: job, want: want, meter: m, staged: staging(job.Dir)}
	d.stream = &stream{
		source: job.Source, clock: job.Clock, patience: job.Patience, checked: want.known(),
		arrived: m.at, broken: m.trouble, bytes: -1, lastByte: job.Clock.Now(), delay: firstDelay,
	}
	return d
}

// run brings the whole file and checks it.
func (d *download) run(ctx context.Context) error {
	err := d.resume(ctx)
	if err == nil {
		err = d.transfer(ctx)
	}
	for errors.Is(err, errRestart) {
		if err = d.reset(); err == nil {
			err = d.transfer(ctx)
		}
	}
	d.stream.close()
	return err
}

func (d *download) close() {
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
	d.inside.close()
}

// contentPath is where the bytes go as they come.
func (d *download) contentPath() string {
	if d.info.Format == format.Raw {
		return d.staged.path(disk.ImageFile)
	}
	return d.staged.path(sourceFile)
}

// resume goes on from a checkpoint, or begins anew where there is none to go on from.
func (d *download) resume(ctx context.Context) error {
	d.blank()
	c, err := d.loadCheckpoint()
	if err != nil {
		return err
	}
	if c == nil {
		return d.reset()
	}
	restored, err := d.restore(c)
	if err != nil {
		return err
	}
	if !restored {
		klog.FromContext(ctx).Info("Starting the download over: its checkpoint does not fit what is on disk", "directory", d.job.Dir)
		return d.reset()
	}
	d.stream.offset, d.stream.bytes, d.stream.validator = c.Offset, c.SourceBytes, c.Validator
	d.savedOffset = c.Offset
	d.meter.step(Downloading, c.Offset, c.SourceBytes)
	d.announce()
	klog.FromContext(ctx).Info("Continuing the download", "source", d.job.Source.String(), "offset", c.Offset)
	return d.staged.cleanExcept(checkpointFile, digestsFile, disk.ImageFile, sourceFile)
}

// blank forgets what is known of the content.
func (d *download) blank() {
	d.close()
	d.info, d.hint, d.tail, d.lent = format.Info{}, -1, nil, nil
	d.hashes = newHashes(d.want, !d.job.Unpublished)
	d.digests = new(manifest.Builder)
	d.savedChunks, d.savedOffset, d.savedTime = 0, 0, d.job.Clock.Now()
	d.saving.Store(false)
}

// reset begins anew with an empty directory.
func (d *download) reset() error {
	d.stream.offset = 0
	d.blank()
	d.meter.step(Downloading, 0, -1)
	return d.staged.cleanExcept()
}

// announce reports what the first bytes told.
func (d *download) announce() {
	d.meter.say(func(p *Progress) {
		p.Format, p.VirtualBytes = d.formatName(), d.info.VirtualBytes
		p.SourceBytes, p.Total = d.stream.bytes, d.stream.bytes
	})
}
