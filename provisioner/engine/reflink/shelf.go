package reflink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/provisioner/engine"
)

// shelf is where the volumes, or the snapshots, of a disk are: each is a directory with a sparse file and a record.
type shelf struct {
	noun    string
	all     string                 // directory of all of them
	dir     func(id string) string // of one
	staged  func(id string) string // where one is made
	content string                 // names of the files in it
	record  string
}

func volumesOf(l disk.Layout) shelf {
	return shelf{noun: "volume", all: l.Volumes(), dir: l.Volume, staged: l.StagedVolume, content: disk.VolumeFile, record: disk.VolumeRecord}
}

func snapshotsOf(l disk.Layout) shelf {
	return shelf{noun: "snapshot", all: l.Snapshots(), dir: l.Snapshot, staged: l.StagedSnapshot, content: disk.SnapshotFile, record: disk.SnapshotRecord}
}

// file of the content.
func (s shelf) file(id string) string { return filepath.Join(s.dir(id), s.content) }

// check refuses what cannot be an ID, and so a file name.
func (s shelf) check(id string) error {
	if problems := validation.IsDNS1123Subdomain(id); len(problems) > 0 {
		return backingimage.Errorf(backingimage.Invalid, "%s ID %q: %s", s.noun, id, strings.Join(problems, "; "))
	}
	return disk.CheckName(s.noun+" ID", id)
}

// is reports whether the open directory is the one with the ID.
func (s shelf) is(id string, dir *os.Root) bool {
	opened, err := dir.Stat(".")
	if err != nil {
		return false
	}
	now, err := os.Stat(s.dir(id))
	return err == nil && os.SameFile(opened, now)
}

func (s shelf) damaged(id string, err error) error {
	return backingimage.Errorf(backingimage.Corrupt, "%s %s is damaged: %w", s.noun, id, err)
}

// list returns every record on the shelf, sorted by ID. Of one that cannot be read it has the ID alone.
func (s shelf) list(ctx context.Context) ([]record, error) {
	entries, err := os.ReadDir(s.all)
	if err != nil {
		return nil, fmt.Errorf("list %ss: %w", s.noun, err)
	}
	var records []record
	for _, entry := range entries {
		if s.check(entry.Name()) != nil {
			continue // nothing of ours
		}
		r, err := s.read(entry.Name())
		if backingimage.Is(err, backingimage.NotFound) {
			continue // deleted since
		}
		if err != nil {
			klog.FromContext(ctx).Error(err, "Listed a damaged "+s.noun, s.noun, entry.Name())
			r = record{Volume: engine.Volume{ID: entry.Name()}}
		}
		records = append(records, r)
	}
	return records, nil
}

// stat looks at the content's file; nil when there is none.
func (s shelf) stat(id string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Stat(s.file(id), &st)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "stat", Path: s.file(id), Err: err}
	}
	return &st, nil
}
