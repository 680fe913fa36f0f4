// Package fetch makes one copy of an image: from its source, in a staging directory, until it is a finished copy that
// only needs to be renamed into place.
//
// Run is one attempt at a download. Bytes go through a pipeline of large recycled buffers: one goroutine reads, one
// hashes the file as the source serves it (SHA-512, and SHA-256 beside it when the publisher gave that), one computes
// the chunks' digests and writes. Hashing is the slowest of them and sets the pace; the others exist to keep out of its
// way. A raw image is written sparse to where it stays; anything else is kept as it comes, turned into raw content when it
// is complete and proven, and removed: qcow2 by package format, other hypervisors' disks by package foreign.
//
// A packed source (gzip, a tar archive …) is kept as it comes too, so that a download of it goes on like any other. A
// decoder reads the growing file beside the download and writes what was inside: raw content to where it stays, other
// images to a file that is converted in the end. A decoder's state cannot be stored, so that after a kill it begins anew, with
// what is on the disk.
//
// # Cut, killed, changed
//
// A connection that breaks is opened again where it broke, for as long as a byte arrives now and then. When none
// did for Options.Patience, Run ends with NotReady and its caller waits longer.
//
// From time to time, off the hot path, what has been written is synced and a checkpoint is stored: offset, validator,
// the states of the hashes, the digests so far. Another Run in the same directory continues there. What was
// written after the checkpoint is cut off first, because nothing vouches for it. A checkpoint that does not fit (another
// URL, another file behind it, another version of us) is dropped, and the download starts over.
//
// An error that trying again cannot mend (backingimage.Terminal) takes the staging directory with it; so does Full, since a
// full disk must not stay full for a download's sake. After all others the directory stays, to be continued or swept.
//
// # Peers
//
// FromPeers makes a copy of what other agents have of it, and gives what it has so far to others (Shares). Every peer is asked
// which chunks it has, now and then; chunks are asked of several peers at once and compared with the manifest as they arrive.
// See type swarm for who is asked for what.
//
// # Done
//
// The directory then holds the content, its manifest, and a Record that says what the copy is; all is on disk. Load reads such
// a directory, Verify reads all its bytes again, CopyLocal makes another one from it on another disk.
//
// # Damaged
//
// Chunks that a disk gives otherwise than the manifest has them are named in a file beside the copy (MarkDamaged). While that is there
// nothing is made of the copy. Repair writes exactly those chunks anew, and takes each off the list when it was read again and is right.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/source"
)

// Job is one image that is to be fetched into one directory.
type Job struct {
	// Dir is the staging directory. It is made if need be, belongs to this package alone, and is kept between attempts:
	// it holds all that is needed to go on.
	Dir string
	// Image and ImageUID are the image's name and UID, for the record.
	Image, ImageUID string
	// Source of the bytes.
	Source source.Source
	// Checksum of the file as the source serves it, in a form that source.ParseChecksum reads; "" when there is none.
	Checksum string
	// Unpublished is set for a file of somebody's own, whose SHA-512 nobody asks for unless Checksum does: it is the most that
	// a fetch costs, and is left out.
	Unpublished bool
	// ContentDigest that the image has, when an earlier copy fixed it; "" when there is none yet.
	ContentDigest string
	// ArchiveFolder is set when the source is a tar archive, perhaps compressed, and the image is the one file in this
	// folder of it, as in a containerDisk ("disk"); "" when the source is the image's file itself.
	ArchiveFolder string
	// Limits of the image's size; zero fields have defaults.
	Limits format.Limits
	// Clock; the real one by default.
	Clock clock.Clock
	Options
}

// Options of a Job; the zero value is good.
type Options struct {
	// Patience is for how long the source may give nothing before Run ends with NotReady; 60 s by default.
	Patience time.Duration
	// CheckpointBytes and CheckpointInterval say how much a kill may cost: a checkpoint is made after so many bytes,
	// or so long, whichever comes first. 256 MiB and 5 s by default.
	CheckpointBytes    int64
	CheckpointInterval time.Duration
}

func (o *Options) validate() error {
	if o.Patience == 0 {
		o.Patience = 60 * time.Second
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = 256 << 20
	}
	if o.CheckpointInterval == 0 {
		o.CheckpointInterval = 5 * time.Second
	}
	if o.Patience < 0 || o.CheckpointBytes < 0 || o.CheckpointInterval < 0 {
		return backingimage.Errorf(backingimage.Invalid, "fetch options: patience %s, checkpoint after %d bytes or %s: give positive values, or none for the defaults", o.Patience, o.CheckpointBytes, o.CheckpointInterval)
	}
	return nil
}

// Result is what a finished copy is.
type Result struct {
	Format        string `json:"format"`             // of the source file, see package format
	Warning       string `json:"warning,omitempty"`  // what of the source was left out
	Resolved      string `json:"resolved,omitempty"` // the source as source.Resolver has it
	SourceBytes   int64  `json:"sourceBytes"`        // size of the source file
	VirtualBytes  int64  `json:"virtualBytes"`       // size of the content
	RealBytes     int64  `json:"realBytes"`          // what the content occupies on its disk
	Checksum      string `json:"checksum"`           // SHA-512 of the source file, in hexadecimal; "" when there is none
	ContentDigest string `json:"contentDigest"`      // see package manifest
}

// Run makes the copy. It is safe to repeat and to kill; on a directory whose copy is finished it returns what that is.
// report is called from one goroutine at a time, some times a second, and should be quick.
//
// Errors: NotReady when the source gave nothing for too long; Corrupt when checksum, content digest or the file itself
// are not what they must be; Full; those of source.Source, of format.Probe, and of ctx.
func Run(ctx context.Context, job Job, report func(Progress)) (Result, error) {
	var last Progress
	result, err := run(ctx, &job, func(p Progress) {
		last = p
		if report != nil {
			report(p)
		}
	})
	if err == nil {
		return result, nil
	}
	err = ended(ctx, err, job.Dir, max(last.VirtualBytes, last.SourceBytes))
	return Result{}, fmt.Errorf("fetch image %s: %w", job.Image, err)
}

func run(ctx context.Context, job *Job, report func(Progress)) (Result, error) {
	want, err := job.validate()
	if err != nil {
		return Result{}, err
	}
	staged := staging(job.Dir)
	if err := staged.make(); err != nil {
		return Result{}, err
	}
	if done, err := Load(job.Dir); err == nil && done.fits(job) {
		return done.Result, staged.clean()
	}
	started := job.Clock.Now()
	d := newDownload(job, want, newMeter(job.Clock, report))
	defer d.close()
	if err := d.run(ctx); err != nil {
		return Result{}, err
	}
	made, err := d.content(ctx)
	if err != nil {
		return Result{}, err
	}
	return staged.finish(job, d.result(made), made, started)
}

// validate fills defaults and reads the checksums.
func (j *Job) validate() (wanted, error) {
	if j.Dir == "" || j.Source == nil {
		return wanted{}, errors.New("fetch: a job needs a directory and a source")
	}
	if j.Clock == nil {
		j.Clock = clock.RealClock{}
	}
	j.Limits = j.Limits.WithDefaults()
	if err := j.Options.validate(); err != nil {
		return wanted{}, err
	}
	var want wanted
	if s, ok := j.Source.(source.Checksummed); ok {
		want.source = s.Checksum()
	}
	var err error
	want.published, err = source.ParseChecksum(j.Checksum)
	return want, err
}
