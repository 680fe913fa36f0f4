package fetch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/durable"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/source"
)

const checkpointVersion = 1

// checkpoint is where a download can go on. All that it speaks of was on disk before it was written: the data up to
// Offset, and, of a raw image, the digests of the chunks up to there, 32 bytes each in a file of their own.
type checkpoint struct {
	Version     int                         `json:"version"`
	Identity    string                      `json:"identity"` // of the source
	Validator   string                      `json:"validator"`
	SourceBytes int64                       `json:"sourceBytes"`
	Offset      int64                       `json:"offset"` // whole chunks
	Info        format.Info                 `json:"info"`
	Lent        bool                        `json:"lent,omitempty"` // the data is in the source's own file
	Hashes      map[source.Algorithm][]byte `json:"hashes"`
}

// save makes a checkpoint of a mark that all stages have passed. It runs while they go on; only one runs at a time.
func (d *download) save(m *mark) error {
	defer d.saving.Store(false)
	bytes := d.bytesFile()
	if err := unix.Fdatasync(int(bytes.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", bytes.Name(), err)
	}
	if d.info.Format == format.Raw {
		if err := d.saveDigests(m.offset / manifest.ChunkBytes); err != nil {
			return fmt.Errorf("save digests: %w", err)
		}
	}
	c := checkpoint{
		Version: checkpointVersion, Identity: d.job.Source.Identity(), Validator: m.validator, SourceBytes: m.bytes,
		Offset: m.offset, Info: d.info, Lent: d.lent != nil, Hashes: map[source.Algorithm][]byte{},
	}
	for _, state := range m.states {
		if s, ok := state.(hashState); ok {
			c.Hashes[s.algorithm] = s.state
		}
	}
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode checkpoint: %w", err)
	}
	return durable.WriteFile(d.staged.path(checkpointFile), text, 0o600)
}

// saveDigests appends the digests of the chunks up to end that are not saved yet.
func (d *download) saveDigests(end int64) error {
	f, err := os.OpenFile(d.staged.path(digestsFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	var list []byte
	for _, digest := range d.digests.Digests(d.savedChunks, end) {
		list = append(list, digest[:]...)
	}
	if _, err := f.WriteAt(list, d.savedChunks*int64(len(manifest.Digest{}))); err != nil {
		return err
	}
	d.savedChunks = end
	return unix.Fdatasync(int(f.Fd()))
}

// loadCheckpoint returns the checkpoint in the directory, nil when there is none that can be used.
func (d *download) loadCheckpoint() (*checkpoint, error) {
	text, err := os.ReadFile(d.staged.path(checkpointFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint: %w", err)
	}
	var c checkpoint
	if json.Unmarshal(text, &c) != nil || c.Version != checkpointVersion || c.Identity != d.job.Source.Identity() {
		return nil, nil
	}
	if c.Offset <= 0 || c.Offset%manifest.ChunkBytes != 0 {
		return nil, nil
	}
	return &c, nil
}

// restore sets the download to a checkpoint; false means that what is on disk does not fit it.
func (d *download) restore(c *checkpoint) (bool, error) {
	if d.hashes.restore(c.Hashes) != nil {
		return false, nil
	}
	d.info = c.Info
	f, err := os.OpenFile(d.contentPath(), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("continue download: %w", err)
	}
	d.file = f
	if d.borrow(); c.Lent && d.lent == nil { // the bytes were never written here
		return false, nil
	}
	if info, err := d.bytesFile().Stat(); err != nil || info.Size() < c.Offset {
		return false, err
	}
	err = f.Truncate(c.Offset) // what came after it was perhaps not synced
	if err == nil && c.Info.Format == format.Raw && c.Info.VirtualBytes > c.Offset {
		err = f.Truncate(c.Info.VirtualBytes)
	}
	if err != nil {
		return false, fmt.Errorf("continue download: %w", err)
	}
	if c.Info.Format == format.Raw {
		return d.restoreDigests(c.Offset / manifest.ChunkBytes)
	}
	return true, nil
}

func (d *download) restoreDigests(chunks int64) (bool, error) {
	f, err := os.Open(d.staged.path(digestsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read digests: %w", err)
	}
	defer f.Close()
	list := io.NewSectionReader(f, 0, chunks*int64(len(manifest.Digest{})))
	for i := range chunks {
		var digest manifest.Digest
		if _, err := io.ReadFull(list, digest[:]); err != nil {
			return false, nil
		}
		d.digests.Set(i, digest)
	}
	d.savedChunks = chunks
	return true, nil
}
