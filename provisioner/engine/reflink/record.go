package reflink

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

// recordVersion is the format of records that this program writes; it reads that and older ones.
const recordVersion = 1

// record is the content of a volume's volume.json, or of a snapshot's snapshot.json: there From is the volume.
type record struct {
	FormatVersion int `json:"formatVersion"`
	engine.Volume
	From    engine.From `json:"from,omitzero"`
	Created time.Time   `json:"created,omitzero"` // when a snapshot was begun: everything that was written before is in it
}

func (r record) encode() ([]byte, error) {
	r.FormatVersion = recordVersion
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the record of %s: %w", r.ID, err)
	}
	return append(text, '\n'), nil
}

// read returns the record of a volume or a snapshot, with the size that its file has. NotFound; Corrupt when the record or the file
// cannot be used; Unsupported when a newer program wrote it.
//
// Stat and List read while other calls make and delete the thing. So both files are read in one directory, whatever has its name
// by then; a file that is missing there means damage only if that directory is still the thing.
func (s shelf) read(id string) (record, error) {
	for {
		dir, err := os.OpenRoot(s.dir(id))
		if errors.Is(err, os.ErrNotExist) {
			return record{}, backingimage.Errorf(backingimage.NotFound, "there is no %s %s on this disk", s.noun, id)
		}
		if err != nil {
			return record{}, s.damaged(id, err)
		}
		r, err := s.readIn(dir, id)
		gone := errors.Is(err, os.ErrNotExist) && !s.is(id, dir)
		dir.Close()
		if !gone {
			return r, err
		}
	}
}

func (s shelf) readIn(dir *os.Root, id string) (record, error) {
	text, err := dir.ReadFile(s.record)
	if err != nil {
		return record{}, s.damaged(id, err)
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.ID != id || r.FormatVersion < 1 {
		return record{}, s.damaged(id, fmt.Errorf("%s is no record of it", filepath.Join(dir.Name(), s.record)))
	}
	if r.FormatVersion > recordVersion {
		return record{}, backingimage.Errorf(backingimage.Unsupported, "%s %s: its record has formatVersion %d, this program knows up to %d: use a newer Plinth", s.noun, id, r.FormatVersion, recordVersion)
	}
	info, err := dir.Stat(s.content)
	if err != nil {
		return record{}, s.damaged(id, err)
	}
	r.Bytes = info.Size()
	return r, nil
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
	case f.Snapshot != "":
		return "snapshot " + f.Snapshot
	}
	return "nothing"
}
