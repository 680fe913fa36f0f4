package reflink

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/provisioner/engine"
)

// recordVersion is the format of records that this program writes; it reads that and older ones.
const recordVersion = 1

// record is the content of a volume's volume.json.
type record struct {
	FormatVersion int `json:"formatVersion"`
	engine.Volume
	From engine.From `json:"from,omitzero"`
}

func (r record) encode() ([]byte, error) {
	r.FormatVersion = recordVersion
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the record of volume %s: %w", r.ID, err)
	}
	return append(text, '\n'), nil
}

// read returns a volume's record, with the size that its file has. NotFound; Corrupt when the record or the file cannot be
// used; Unsupported when a newer program wrote it.
//
// Stat and List read while other calls make and delete the volume. So both files are read in one directory, whatever has its name
// by then; a file that is missing there means damage only if that directory is still the volume.
func (e *Engine) read(id string) (record, error) {
	for {
		dir, err := os.OpenRoot(e.layout.Volume(id))
		if errors.Is(err, os.ErrNotExist) {
			return record{}, backingimage.Errorf(backingimage.NotFound, "there is no volume %s on this disk", id)
		}
		if err != nil {
			return record{}, damaged(id, err)
		}
		r, err := readIn(dir, id)
		gone := errors.Is(err, os.ErrNotExist) && !e.is(id, dir)
		dir.Close()
		if !gone {
			return r, err
		}
	}
}

func readIn(dir *os.Root, id string) (record, error) {
	text, err := dir.ReadFile(disk.VolumeRecord)
	if err != nil {
		return record{}, damaged(id, err)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.ID != id || r.FormatVersion < 1 {
		return record{}, damaged(id, fmt.Errorf("%s is no record of it", filepath.Join(dir.Name(), disk.VolumeRecord)))
	}
	if r.FormatVersion > recordVersion {
		return record{}, backingimage.Errorf(backingimage.Unsupported, "volume %s: its record has formatVersion %d, this program knows up to %d: use a newer Plinth", id, r.FormatVersion, recordVersion)
	}
	info, err := dir.Stat(disk.VolumeFile)
	if err != nil {
		return record{}, damaged(id, err)
	}
	r.Bytes = info.Size()
	return r, nil
}

// is reports whether the open directory is the volume.
func (e *Engine) is(id string, dir *os.Root) bool {
	opened, err := dir.Stat(".")
	if err != nil {
		return false
	}
	now, err := os.Stat(e.layout.Volume(id))
	return err == nil && os.SameFile(opened, now)
}

func damaged(id string, err error) error {
	return backingimage.Errorf(backingimage.Corrupt, "volume %s is damaged: %w", id, err)
}

// mustEqual is Conflict when an existing volume is not what is asked for.
func (r record) mustEqual(asked record) error {
	if r.Bytes != asked.Bytes {
		return backingimage.Errorf(backingimage.Conflict, "volume %s exists with %d bytes, not %d", r.ID, r.Bytes, asked.Bytes)
	}
	if r.From != asked.From {
		return backingimage.Errorf(backingimage.Conflict, "volume %s exists and is made from %s, not from %s", r.ID, origin(r.From), origin(asked.From))
	}
	return nil
}

func origin(f engine.From) string {
	switch {
	case f.Image != "":
		return "image " + f.Image
	case f.Volume != "":
		return "volume " + f.Volume
	}
	return "nothing"
}
