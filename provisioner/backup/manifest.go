package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/parallel"
	"plinth.dev/plinth/provisioner/backup/object"
)

// Manifest is one backup. What it says is enough to bring the volume or the image back where nothing else is known.
type Manifest struct {
	Version int `json:"version"`
	// ID is the backup's name in the repository, and nobody else's.
	ID string `json:"id"`
	// Name that people gave it.
	Name string `json:"name"`
	// Taken is the moment that the content is of.
	Taken time.Time `json:"taken"`
	// Written is when the backup was complete.
	Written time.Time `json:"written"`
	// Volume is what the content was; nil in the backup of an image.
	Volume *Volume `json:"volume,omitempty"`
	// Image that the content is, or that the volume began as; nil for a volume that began empty.
	Image *Image `json:"image,omitempty"`
	// Content of the volume: what of it may differ from the image's. Of an image's backup, nothing.
	Content Content `json:"content"`
	// Labels of the backup.
	Labels map[string]string `json:"labels,omitempty"`
	Stats  Stats             `json:"stats"`
}

// Volume is what a backup keeps of a volume beside its content.
type Volume struct {
	Name       string            `json:"name"` // of the Volume object
	UID        string            `json:"uid"`
	Asked      string            `json:"asked"` // the name that the orchestrator asked for
	Parameters map[string]string `json:"parameters,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Partition  int32             `json:"partition,omitempty"`
	MkfsParams string            `json:"mkfsParams,omitempty"`
}

// Image is what a backup keeps of an image.
type Image struct {
	Name          string `json:"name"`
	ContentDigest string `json:"contentDigest"` // BLAKE3 over the raw content, as images have it
	// SourceType and SourceParameters say where it came from, when anyone may know that.
	SourceType       string            `json:"sourceType,omitempty"`
	SourceParameters map[string]string `json:"sourceParameters,omitempty"`
	Checksum         string            `json:"checksum,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Content          Content           `json:"content"`
}

// Stats say what a backup took.
type Stats struct {
	ReadBytes   int64 `json:"readBytes"`   // of the content
	SentBytes   int64 `json:"sentBytes"`   // to the store, compressed
	NewBytes    int64 `json:"newBytes"`    // of blocks that the store did not have, before compression
	StoredBytes int64 `json:"storedBytes"` // of the blocks that the volume's own content lists, before compression
}

// manifestVersion is what this program writes; it reads that and older ones.
const manifestVersion = 1

// Bytes is the size of what a restore gives.
func (m *Manifest) Bytes() int64 {
	if m.Volume == nil && m.Image != nil {
		return m.Image.Content.Bytes
	}
	return m.Content.Bytes
}

// Of is what the backup is of, in words.
func (m *Manifest) Of() string {
	if m.Volume != nil {
		return "volume " + m.Volume.Name
	}
	return "image " + m.Image.Name
}

func (m *Manifest) check(id string) error {
	switch {
	case m.ID != id:
		return corrupt("it is the backup %q", m.ID)
	case m.Volume == nil && m.Image == nil:
		return corrupt("it is of neither a volume nor an image")
	case m.Volume == nil && m.Content.Bytes != 0:
		return corrupt("it is of an image and has a volume's content")
	}
	if m.Image != nil {
		if err := m.Image.Content.check(); err != nil {
			return err
		}
	}
	return m.Content.check()
}

// contents are the one or two contents whose pages the backup needs.
func (m *Manifest) contents() []*Content {
	all := []*Content{&m.Content}
	if m.Image != nil {
		all = append(all, &m.Image.Content)
	}
	return all
}

// Backup reads a backup's manifest. NotFound; Corrupt; Unsupported when a newer program wrote it; Invalid for what cannot be an ID.
func (r *Repository) Backup(ctx context.Context, id string) (*Manifest, error) {
	if !backupIDs.MatchString(id) || strings.Contains(id, "..") {
		return nil, backingimage.Errorf(backingimage.Invalid, "%q cannot be the ID of a backup", id)
	}
	name := backupsFolder + id
	stored, err := r.store.Get(ctx, name, storedLimit(kindManifest))
	if backingimage.Is(err, backingimage.NotFound) {
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no backup %s in %s", id, r.store)
	}
	if err != nil {
		return nil, err
	}
	m, err := r.parseManifest(id, stored)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.KindOf(err), "%s in %s: %w", name, r.store, err)
	}
	return m, nil
}

func (r *Repository) parseManifest(id string, stored []byte) (*Manifest, error) {
	text, err := r.keys.disclose(nil, kindManifest, id, stored)
	if err != nil {
		return nil, err
	}
	var of struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &of); err != nil || of.Version < 1 {
		return nil, corrupt("it is no manifest")
	}
	if of.Version > manifestVersion {
		return nil, backingimage.Errorf(backingimage.Unsupported, "the backup was written by a newer Plinth: its manifest has version %d, and this program knows version %d", of.Version, manifestVersion)
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, corrupt("it is no manifest")
	}
	return &m, m.check(id)
}

func (r *Repository) writeManifest(ctx context.Context, m *Manifest) error {
	m.Version = manifestVersion
	if !backupIDs.MatchString(m.ID) {
		return backingimage.Errorf(backingimage.Invalid, "%q cannot be the ID of a backup", m.ID)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the manifest of backup %s: %w", m.ID, err)
	}
	return r.store.PutSynced(ctx, backupsFolder+m.ID, r.keys.enclose(nil, kindManifest, m.ID, text))
}

// Find reads the manifest of the backup that has an ID or, where none has, the name; volume is the name of its volume, as its object or the
// orchestrator has it, "" for any. NotFound; Conflict when several have the name.
func (r *Repository) Find(ctx context.Context, name, volume string) (*Manifest, error) {
	fits := func(m *Manifest) bool {
		return volume == "" || m.Volume != nil && (m.Volume.Name == volume || m.Volume.Asked == volume)
	}
	m, err := r.Backup(ctx, name)
	if err == nil && fits(m) || err != nil && !backingimage.Is(err, backingimage.NotFound) && !backingimage.Is(err, backingimage.Invalid) {
		return m, err
	}
	list, err := r.List(ctx)
	if err != nil {
		return nil, err
	}
	var found []*Manifest
	for _, l := range list {
		if l.Manifest != nil && l.Manifest.Name == name && fits(l.Manifest) {
			found = append(found, l.Manifest)
		}
	}
	switch len(found) {
	case 0:
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no backup %q in %s", name, r.store)
	case 1:
		return found[0], nil
	}
	return nil, backingimage.Errorf(backingimage.Conflict, "%d backups in %s have the name %q; give the ID of the one that is meant, such as %s", len(found), r.store, name, found[len(found)-1].ID)
}

// Listed is a backup in a list: its manifest, or why that cannot be read.
type Listed struct {
	ID       string
	Manifest *Manifest
	Err      error
}

// List reads the manifests of all backups, oldest first. One that cannot be read is in the list with its error.
func (r *Repository) List(ctx context.Context) ([]Listed, error) {
	ids, err := r.ids(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]Listed, len(ids))
	group, ctx := parallel.WithContext(ctx)
	next := make(chan int)
	group.Go(func() error {
		defer close(next)
		for i := range ids {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	var mu sync.Mutex
	for range r.width {
		group.Go(func() error {
			for i := range next {
				m, err := r.Backup(ctx, ids[i])
				if err != nil && ctx.Err() != nil {
					return ctx.Err()
				}
				mu.Lock()
				list[i] = Listed{ids[i], m, err}
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(l Listed) bool { return backingimage.Is(l.Err, backingimage.NotFound) }) // deleted meanwhile
	slices.SortStableFunc(list, func(a, b Listed) int { return a.taken().Compare(b.taken()) })
	return list, nil
}

func (l Listed) taken() time.Time {
	if l.Manifest == nil {
		return time.Time{}
	}
	return l.Manifest.Taken
}

func (r *Repository) ids(ctx context.Context) ([]string, error) {
	var ids []string
	err := r.store.List(ctx, backupsFolder, func(o object.Object) error {
		if id := strings.TrimPrefix(o.Name, backupsFolder); backupIDs.MatchString(id) && !isTemporary(id) {
			ids = append(ids, id)
		}
		return nil
	})
	return ids, err
}

// Remove deletes a backup; one that is not there is success. Its blocks go with Collect, as far as nothing else needs them.
func (r *Repository) Remove(ctx context.Context, id string) error {
	if !backupIDs.MatchString(id) || strings.Contains(id, "..") {
		return backingimage.Errorf(backingimage.Invalid, "%q cannot be the ID of a backup", id)
	}
	return r.store.Delete(ctx, backupsFolder+id)
}
