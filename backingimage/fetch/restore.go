package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
)

// ImageBackup is an image as a backup has it.
type ImageBackup struct {
	What          string // for people, and for the record
	Bytes         int64  // of the content
	ContentDigest string
	// Fill makes a file the content, sparse and durable, and keeps the digests of its chunks. again says that the file may hold part of
	// it, or anything else. report is told how many bytes are done with, from any goroutine. Corrupt when the backup lacks some of
	// the content, or gives another.
	Fill func(ctx context.Context, f *os.File, digests *manifest.Builder, again bool, report func(done int64)) error
	// Download are the parameters of the download that the image came from, and Checksum is its file's; nil when that is not known.
	Download map[string]string
	Checksum string
	// Elsewhere says that the image is to come from there although the backup has it.
	Elsewhere bool
}

// Restore makes a copy of an image of what a backup has of it. Holes are not written, nor read; the file as a whole is read once if the job
// asks for a checksum. It is safe to repeat and to kill: what is there of the content stays.
//
// Errors: those of Fill; Corrupt when checksum or content digest are not what they must be; Full; those of ctx.
func Restore(ctx context.Context, job NearJob, from ImageBackup, report func(Progress)) (Result, error) {
	return near(ctx, job, report, "restore", func(staged staging, want source.Checksum, progress *meter) (Result, *manifest.Manifest, error) {
		if err := staged.cleanExcept(disk.ImageFile); err != nil {
			return Result{}, nil, err
		}
		_, err := os.Stat(staged.path(disk.ImageFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Result{}, nil, fmt.Errorf("continue: %w", err)
		}
		again := err == nil
		f, err := os.OpenFile(staged.path(disk.ImageFile), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return Result{}, nil, fmt.Errorf("restore: %w", err)
		}
		defer f.Close()
		progress.say(func(p *Progress) {
			p.Step, p.Total, p.Format, p.SourceBytes, p.VirtualBytes = Downloading, from.Bytes, format.Raw, from.Bytes, from.Bytes
		})
		digests := new(manifest.Builder)
		if err := from.Fill(ctx, f, digests, again, progress.at); err != nil {
			return Result{}, nil, err
		}
		m := digests.Manifest(from.Bytes)
		sum, err := checkedSum(ctx, f, from.Bytes, want, job.Source)
		return Result{Format: format.Raw, SourceBytes: from.Bytes, VirtualBytes: from.Bytes, Checksum: sum, ContentDigest: m.ContentDigest()}, m, err
	})
}

// Downloading a file has begun when there is a checkpoint of it.
func begun(dir string) bool {
	_, err := os.Stat(staging(dir).path(checkpointFile))
	return err == nil
}

// Instead reports whether an image is to be downloaded again instead of restored: because somebody wants that, because it was begun, or
// because the restore failed for what the backup lacks.
func (b ImageBackup) Instead(dir string, restored error) bool {
	return b.Download != nil && (b.Elsewhere || begun(dir) || backingimage.Is(restored, backingimage.Corrupt))
}
