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
func (e *Engine) read(id string) (record, error) {
	path := filepath.Join(e.layout.Volume(id), disk.VolumeRecord)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && e.exists(id) {
		text, err = os.ReadFile(path) // the volume, which appears as a whole, appeared just now
	}
	if err != nil {
		return record{}, e.missing(id, err)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.ID != id || r.FormatVersion < 1 {
		return record{}, backingimage.Errorf(backingimage.Corrupt, "volume %s: its record %s is damaged or another volume's", id, path)
	}
	if r.FormatVersion > recordVersion {
		return record{}, backingimage.Errorf(backingimage.Unsupported, "volume %s: %s has formatVersion %d, this program knows up to %d: use a newer Plinth", id, path, r.FormatVersion, recordVersion)
	}
	info, err := os.Stat(e.file(id))
	if err != nil {
		return record{}, e.missing(id, err)
	}
	r.Bytes = info.Size()
	return r, nil
}

// missing says what it means that a volume's file cannot be read: there is no volume, or a damaged one.
func (e *Engine) missing(id string, err error) error {
	if !e.exists(id) {
		return backingimage.Errorf(backingimage.NotFound, "there is no volume %s on this disk", id)
	}
	return backingimage.Errorf(backingimage.Corrupt, "volume %s is damaged: %w", id, err)
}

func (e *Engine) exists(id string) bool {
	_, err := os.Stat(e.layout.Volume(id))
	return !errors.Is(err, os.ErrNotExist)
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
