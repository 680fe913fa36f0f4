package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/durable"
)

// formatVersion of what is on a disk. A program opens disks of its own version and older ones.
const formatVersion = 1

// identity is the content of the identity file.
type identity struct {
	UUID          string    `json:"uuid"`
	FormatVersion int       `json:"formatVersion"`
	CreatedAt     time.Time `json:"createdAt"`
}

// openIdentity reads the disk's identity. A disk that is still empty gets one; a disk that has lost its own never gets a
// new one, because the copies and volumes on it belong to the old.
func openIdentity(l Layout, clock clock.PassiveClock) (identity, error) {
	id, err := readIdentity(l)
	if !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	if err := lostIdentity(l); err != nil {
		return identity{}, err
	}
	id = identity{UUID: uuid.NewString(), FormatVersion: formatVersion, CreatedAt: clock.Now().UTC().Truncate(time.Second)}
	text, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return identity{}, err
	}
	return id, durable.WriteFile(l.identityFile(), append(text, '\n'), 0o600)
}

// lostIdentity refuses a disk that has copies, volumes or snapshots and no identity.
func lostIdentity(l Layout) error {
	for _, dir := range []string{l.Images(), l.Volumes(), l.Snapshots()} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if len(entries) > 0 {
			return trouble(ProblemMissing, string(l), "%s is gone but %s is not empty: put the file back with the disk's old UUID (the name of its Disk object), or move %s away to begin an empty disk",
				l.identityFile(), dir, dir)
		}
	}
	return nil
}

// readIdentity returns os.ErrNotExist when there is no identity file.
func readIdentity(l Layout) (identity, error) {
	text, err := os.ReadFile(l.identityFile())
	if err != nil {
		return identity{}, fmt.Errorf("read the disk's identity: %w", err)
	}
	var id identity
	// Of a newer format nothing but the version is understood.
	if err := json.Unmarshal(text, &struct {
		FormatVersion *int `json:"formatVersion"`
	}{&id.FormatVersion}); err == nil && id.FormatVersion > formatVersion {
		return identity{}, backingimage.Errorf(backingimage.Unsupported, "%s has formatVersion %d, this program knows up to %d: use a newer Plinth", l.identityFile(), id.FormatVersion, formatVersion)
	}
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	err = strict.Decode(&id)
	if err == nil && id.FormatVersion < 1 {
		err = fmt.Errorf("formatVersion is %d", id.FormatVersion)
	}
	if err == nil {
		_, err = uuid.Parse(id.UUID)
	}
	if err != nil {
		err = backingimage.Errorf(backingimage.Corrupt, "%s cannot be read (%w): restore it from a backup; its uuid is the name of the disk's Disk object", l.identityFile(), err)
		return identity{}, &troubled{err, ProblemUnreadable}
	}
	return id, nil
}

func (l Layout) identityFile() string { return filepath.Join(string(l), IdentityFile) }
