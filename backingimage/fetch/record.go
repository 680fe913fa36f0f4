package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

const recordVersion = 1

// Record is what a copy's directory says of itself, in copy.json: enough to rebuild a lost control plane.
type Record struct {
	Version        int       `json:"version"`
	Image          string    `json:"image"`
	ImageUID       string    `json:"imageUID"`
	Source         string    `json:"source"`         // without secrets
	SourceIdentity string    `json:"sourceIdentity"` // source.Source's Identity
	Started        time.Time `json:"started"`        // of the attempt that finished
	Finished       time.Time `json:"finished"`
	Result
}

// fits reports whether the copy is the one that a job wants.
func (r Record) fits(job *Job) bool {
	return r.ImageUID == job.ImageUID && r.SourceIdentity == job.Source.Identity() &&
		(job.ContentDigest == "" || job.ContentDigest == r.ContentDigest)
}

func (r Record) write(s staging) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", disk.CopyFile, err)
	}
	return durable.WriteFile(s.path(disk.CopyFile), append(text, '\n'), 0o600)
}

// Load reads the record of a finished copy and checks that content and manifest are there, have the sizes that the
// record says, and that the manifest is whole. It does not read the content: see Verify. A directory without a
// finished copy is NotFound; one whose parts do not fit each other is Corrupt.
func Load(dir string) (Record, error) {
	record, _, err := load(dir)
	return record, err
}

// ContentPath is where a finished copy's directory has the content.
func ContentPath(dir string) string { return filepath.Join(dir, disk.ImageFile) }

func load(dir string) (Record, *manifest.Manifest, error) {
	record, err := ReadRecord(dir)
	if err != nil {
		return Record{}, nil, err
	}
	if err := checkContent(dir, record); err != nil {
		return Record{}, nil, err
	}
	m, err := readManifest(dir, record)
	return record, m, err
}

// checkContent checks that the content is there and has its size.
func checkContent(dir string, record Record) error {
	info, err := os.Stat(filepath.Join(dir, disk.ImageFile))
	if errors.Is(err, fs.ErrNotExist) {
		return damaged(dir, "its content %s is gone", disk.ImageFile)
	}
	if err != nil {
		return fmt.Errorf("load copy: %w", err)
	}
	if info.Size() != record.VirtualBytes || !info.Mode().IsRegular() {
		return damaged(dir, "its content %s has %d bytes, not %d", disk.ImageFile, info.Size(), record.VirtualBytes)
	}
	return nil
}

// ReadRecord reads the record of a finished copy and nothing else: see Load for what it means.
func ReadRecord(dir string) (Record, error) {
	text, err := os.ReadFile(filepath.Join(dir, disk.CopyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, backingimage.Errorf(backingimage.NotFound, "no finished copy in %s: it has no %s", dir, disk.CopyFile)
	}
	if err != nil {
		return Record{}, fmt.Errorf("load copy: %w", err)
	}
	var record Record
	if err := json.Unmarshal(text, &record); err != nil {
		return Record{}, damaged(dir, "its %s cannot be read: %v", disk.CopyFile, err)
	}
	if record.Version != recordVersion {
		return Record{}, backingimage.Errorf(backingimage.Unsupported, "the copy in %s has version %d, this program knows version %d; use the program that made it, or remove the copy", dir, record.Version, recordVersion)
	}
	return record, nil
}

func readManifest(dir string, record Record) (*manifest.Manifest, error) {
	file, err := os.ReadFile(filepath.Join(dir, disk.ManifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(dir, "its manifest is gone")
	}
	if err != nil {
		return nil, fmt.Errorf("load copy: %w", err)
	}
	m, err := manifest.Parse(file)
	if err != nil {
		return nil, damaged(dir, "%v", err)
	}
	if m.Bytes() != record.VirtualBytes || m.ContentDigest() != record.ContentDigest {
		return nil, damaged(dir, "its manifest is of another content than its record")
	}
	return m, nil
}

func damaged(dir, format string, args ...any) error {
	return backingimage.Errorf(backingimage.Corrupt, "the copy in %s is damaged: %w; remove it, and it is made anew", dir, fmt.Errorf(format, args...))
}

// RecordOf is the record of a content that is no image's copy, as peers are given it.
func RecordOf(name, uid string, m *manifest.Manifest) Record {
	return Record{Version: recordVersion, Image: name, ImageUID: uid, Result: Result{
		Format: format.Raw, SourceBytes: m.Bytes(), VirtualBytes: m.Bytes(), ContentDigest: m.ContentDigest(),
	}}
}
