package fetch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/backingimage/manifest"
)

// staging is the directory in which a copy is made.
type staging string

// Names beside those that a finished copy has.
const (
	sourceFile     = "source"     // what is not raw, as the source serves it
	insideFile     = "inside"     // an image that is not raw and was packed in the source file
	checkpointFile = "checkpoint" // see type checkpoint
	digestsFile    = "digests"    // digests of a raw image's chunks so far
)

func (s staging) path(name string) string { return filepath.Join(string(s), name) }

// make makes the directory, and its entry durable.
func (s staging) make() error {
	if err := os.MkdirAll(string(s), 0o700); err != nil {
		return fmt.Errorf("make staging directory: %w", err)
	}
	return durable.SyncDir(filepath.Dir(string(s)))
}

// clean removes everything but a finished copy.
func (s staging) clean() error {
	return s.cleanExcept(disk.ImageFile, disk.ManifestFile, disk.CopyFile)
}

// cleanExcept removes everything but the named files.
func (s staging) cleanExcept(keep ...string) error {
	entries, err := os.ReadDir(string(s))
	if err != nil {
		return fmt.Errorf("clean staging directory: %w", err)
	}
	kept := map[string]bool{}
	for _, name := range keep {
		kept[name] = true
	}
	for _, entry := range entries {
		if kept[entry.Name()] {
			continue
		}
		if err := os.RemoveAll(s.path(entry.Name())); err != nil {
			return fmt.Errorf("clean staging directory: %w", err)
		}
	}
	return nil
}

// finish turns a directory with a complete, synced content into a finished copy. The record is last: a directory with
// one is complete.
func (s staging) finish(job *Job, result Result, m *manifest.Manifest, started time.Time) (Result, error) {
	if job.ContentDigest != "" && job.ContentDigest != result.ContentDigest {
		return Result{}, backingimage.Errorf(backingimage.Corrupt,
			"the URL now serves something else: the image's content digest is %s, what %s serves now has %s; create a new image for the new content", job.ContentDigest, job.Source, result.ContentDigest)
	}
	record := Record{
		Version: recordVersion, Image: job.Image, ImageUID: job.ImageUID, Source: job.Source.String(), SourceIdentity: job.Source.Identity(),
		Started: started.UTC(), Finished: job.Clock.Now().UTC(), Result: result,
	}
	return s.seal(record, m)
}

// seal writes manifest and record beside a content that is synced, and removes the rest.
func (s staging) seal(record Record, m *manifest.Manifest) (Result, error) {
	info, err := os.Stat(s.path(disk.ImageFile))
	if err != nil {
		return Result{}, err
	}
	record.RealBytes = info.Sys().(*syscall.Stat_t).Blocks * 512
	if err := durable.WriteFile(s.path(disk.ManifestFile), m.Encode(), 0o600); err != nil {
		return Result{}, err
	}
	if err := record.write(s); err != nil {
		return Result{}, err
	}
	return record.Result, s.clean()
}

// ended is the error of an attempt that failed, with what a full disk lacks. Where trying again cannot help, or where the room is
// needed, the directory goes with it.
func ended(ctx context.Context, err error, dir string, needed int64) error {
	err = describeFull(err, dir, needed)
	if backingimage.Terminal(err) || backingimage.Is(err, backingimage.Full) {
		if rerr := os.RemoveAll(dir); rerr != nil {
			klog.FromContext(ctx).Error(rerr, "Removing what a failed fetch left", "directory", dir)
		}
	}
	return err
}

// describeFull turns "no space left" into Full. needed is how many bytes the copy takes at the most, -1 when that is not
// known.
func describeFull(err error, dir string, needed int64) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	room := "free space on it"
	if needed > 0 {
		room = fmt.Sprintf("make up to %d bytes available on it", needed)
	}
	return backingimage.Errorf(backingimage.Full, "the disk that holds %s is full: %w; %s, or place the copy on another disk", dir, err, room)
}
