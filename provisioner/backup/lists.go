package backup

import (
	"context"
	"strings"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup/object"
)

// list is a list of condemned objects.
type list struct {
	id    string
	at    time.Time // when it was written, by the store's clock
	names []string
	swept time.Time // when its objects had been deleted, by the store's clock; zero before
}

// lists reads the lists of condemned objects; those in known need not be read again and have no names.
func (r *Repository) lists(ctx context.Context, known map[string]bool) ([]list, error) {
	var found []list
	err := r.store.List(ctx, listsFolder, func(o object.Object) error {
		if id := strings.TrimPrefix(o.Name, listsFolder); tokens.MatchString(id) {
			found = append(found, list{id: id, at: o.Modified})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	read := found[:0]
	for _, l := range found {
		if !known[l.id] {
			l.names, err = r.listed(ctx, l.id)
			if backingimage.Is(err, backingimage.NotFound) { // done with since it was listed
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		read = append(read, l)
	}
	return read, nil
}

// listed reads the names in a list.
func (r *Repository) listed(ctx context.Context, id string) ([]string, error) {
	stored, err := r.store.Get(ctx, listsFolder+id, storedLimit(kindList))
	if err != nil {
		return nil, err
	}
	text, err := r.keys.disclose(nil, kindList, id, stored)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.KindOf(err), "%s%s in %s: %w; remove it when no backup is being made and no garbage collected", listsFolder, id, r.store, err)
	}
	return strings.Fields(string(text)), nil
}

// condemn writes a list.
func (r *Repository) condemn(ctx context.Context, names []string) error {
	id := token()
	return r.store.PutSynced(ctx, listsFolder+id, r.keys.enclose(nil, kindList, id, []byte(strings.Join(names, "\n"))))
}

// maxListed is how many names one list holds: their text has about 8 MiB.
const maxListed = 100_000

// now is the store's clock.
func (r *Repository) now(ctx context.Context) (time.Time, error) {
	name := clockFolder + token()
	if err := r.store.Put(ctx, name, []byte("This was written to learn the time of the store; remove it if it stays.\n")); err != nil {
		return time.Time{}, err
	}
	at, err := r.store.Modified(ctx, name)
	if derr := r.store.Delete(ctx, name); err == nil {
		err = derr
	}
	return at, err
}
