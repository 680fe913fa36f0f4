package backup

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup/object"
)

// Collected is what Collect did.
type Collected struct {
	Condemned    int64 // objects that are garbage now and will be deleted after the grace time
	Deleted      int64 // objects
	DeletedBytes int64
	Kept         int64 // objects that stay
}

// Collect deletes what was garbage a grace time ago and still is, and condemns what is garbage now. It may run while backups are made,
// restored and deleted, and beside other collectors: see the package comment. When a manifest cannot be read it deletes nothing,
// since nobody knows what that backup needs: Corrupt or Unsupported, with its name.
func (r *Repository) Collect(ctx context.Context) (Collected, error) {
	c := &collecting{repository: r, began: time.Now(), condemned: map[string]bool{}, due: map[string]bool{}, needed: map[ID]bool{}}
	steps := []func(context.Context) error{c.readLists, c.readManifests, c.readPages, c.sweepPages, c.sweepBlocks, c.sweepLeftovers, c.finish}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return c.did, fmt.Errorf("collect garbage: %w", err)
		}
	}
	return c.did, nil
}

// collecting is one Collect.
type collecting struct {
	repository *Repository
	began      time.Time
	now        time.Time // by the store's clock
	lists      []list
	condemned  map[string]bool // names in any list
	due        map[string]bool // names in lists that are old enough to be acted upon
	needed     map[ID]bool     // pages that manifests need
	dead       []object.Object // pages that are due and that nothing needs
	doomed     []string        // to be condemned now

	kept  marks // blocks of pages that stay
	extra marks // blocks of pages that will go and are there yet
	did   Collected
}

func (c *collecting) readLists(ctx context.Context) (err error) {
	if c.now, err = c.repository.now(ctx); err != nil {
		return err
	}
	if c.lists, err = c.repository.lists(ctx, nil); err != nil {
		return err
	}
	for i := range c.lists {
		l := &c.lists[i]
		l.swept, err = c.repository.store.Modified(ctx, sweptFolder+l.id)
		if err != nil && !backingimage.Is(err, backingimage.NotFound) {
			return err
		}
		for _, name := range l.names {
			c.condemned[name] = true
			if l.swept.IsZero() && c.old(l.at) {
				c.due[name] = true
			}
		}
	}
	return nil
}

// old reports whether the grace time is over since a moment. A store that tells times by the second is given one more.
func (c *collecting) old(at time.Time) bool { return c.now.Sub(at) > c.repository.grace+time.Second }

func (c *collecting) readManifests(ctx context.Context) error {
	ids, err := c.repository.ids(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		m, err := c.repository.Backup(ctx, id)
		if backingimage.Is(err, backingimage.NotFound) {
			continue // deleted since it was listed
		}
		if err != nil {
			return fmt.Errorf("nothing was removed, since it is not known what backup %s needs: %w", id, err)
		}
		for _, content := range m.contents() {
			for _, page := range content.Pages {
				c.needed[page] = true
			}
		}
	}
	// A place that went away, such as a mount, has no backups in it: it must not be that what comes next is there again.
	if there, err := c.repository.store.Modified(ctx, descriptionName); err != nil {
		return fmt.Errorf("nothing was removed: %w", err)
	} else if there.IsZero() {
		return backingimage.Errorf(backingimage.NotReady, "nothing was removed: %s tells no times", c.repository)
	}
	return nil
}

// readPages finds the pages that stay, that are to be deleted, and that are garbage now; and what blocks they hold.
func (c *collecting) readPages(ctx context.Context) error {
	read := map[ID]bool{}
	return c.each(ctx, kindPage, func(o object.Object, id ID) error {
		switch {
		case c.needed[id]:
			return c.mark(ctx, id, read, &c.kept)
		case c.due[o.Name]:
			c.dead = append(c.dead, o)
			return nil
		case c.condemned[o.Name]:
			return c.mark(ctx, id, read, &c.extra)
		case c.old(o.Modified):
			c.doom(o.Name)
			return c.mark(ctx, id, read, &c.extra)
		}
		return c.mark(ctx, id, read, &c.kept)
	})
}

// mark notes a page's blocks. One that no manifest needs and that cannot be read holds none.
func (c *collecting) mark(ctx context.Context, id ID, read map[ID]bool, as *marks) error {
	if read[id] {
		return nil
	}
	p, err := c.repository.readPage(ctx, id)
	if backingimage.Is(err, backingimage.Corrupt) && !c.needed[id] {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nothing was removed, since it is not known which blocks a backup needs; verify the backups and remove the damaged one: %w", err)
	}
	read[id] = true
	for i := range PageBlocks {
		if block, _ := p.entry(i); !block.IsZero() {
			as.add(block)
		}
	}
	return nil
}

func (c *collecting) doom(name string) {
	if len(c.doomed) < maxListed {
		c.doomed = append(c.doomed, name)
	}
}

// sweepPages deletes pages before the blocks that they list.
func (c *collecting) sweepPages(ctx context.Context) error {
	for _, o := range c.dead {
		if err := c.delete(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

func (c *collecting) sweepBlocks(ctx context.Context) error {
	c.kept.sort()
	c.extra.sort()
	return c.each(ctx, kindBlock, func(o object.Object, id ID) error {
		switch stays, there := c.kept.has(id), c.extra.has(id); {
		case stays:
		case c.due[o.Name] && !there:
			return c.delete(ctx, o)
		case c.condemned[o.Name]:
		case c.old(o.Modified):
			c.doom(o.Name)
			return nil
		}
		c.did.Kept++
		return nil
	})
}

// delete deletes an object while it is certain that no other collector has moved on; see the package comment.
func (c *collecting) delete(ctx context.Context, o object.Object) error {
	if elapsed(c.began, time.Now()) > c.repository.grace/2 {
		return backingimage.Errorf(backingimage.NotReady, "this takes longer than half of the grace time of %s; it goes on with the next run", c.repository.grace)
	}
	if err := c.repository.store.Delete(ctx, o.Name); err != nil {
		return err
	}
	c.did.Deleted++
	c.did.DeletedBytes += o.Bytes
	return nil
}

// finish notes what was done, drops lists that nobody can be at work on, and writes the new one.
func (c *collecting) finish(ctx context.Context) error {
	r := c.repository
	for _, l := range c.lists {
		var err error
		switch {
		case l.swept.IsZero() && c.old(l.at):
			err = r.store.PutSynced(ctx, sweptFolder+l.id, []byte("The objects in the list of this name were deleted.\n"))
		case !l.swept.IsZero() && c.old(l.swept):
			if err = r.store.Delete(ctx, listsFolder+l.id); err == nil {
				err = r.store.Delete(ctx, sweptFolder+l.id)
			}
		}
		if err != nil {
			return err
		}
	}
	if c.did.Condemned = int64(len(c.doomed)); c.did.Condemned > 0 {
		if err := r.condemn(ctx, c.doomed); err != nil {
			return err
		}
	}
	klog.FromContext(ctx).V(2).Info("Collected garbage of backups", "target", r.String(), "condemned", c.did.Condemned, "deleted", c.did.Deleted, "deletedBytes", c.did.DeletedBytes)
	return nil
}

// each calls fn with the objects of a kind.
func (c *collecting) each(ctx context.Context, kind byte, fn func(object.Object, ID) error) error {
	return c.repository.store.List(ctx, folders[kind], func(o object.Object) error {
		if id, ok := parseName(kind, o.Name); ok {
			return fn(o, id)
		}
		if isTemporary(o.Name) && c.old(o.Modified) {
			return c.delete(ctx, o)
		}
		return nil
	})
}

// sweepLeftovers deletes what killed processes left beside pages and blocks.
func (c *collecting) sweepLeftovers(ctx context.Context) error {
	lists := map[string]bool{}
	for _, l := range c.lists {
		lists[l.id] = true
	}
	for _, folder := range []string{backupsFolder, garbageFolder, probeFolder} {
		err := c.repository.store.List(ctx, folder, func(o object.Object) error {
			swept, isSwept := strings.CutPrefix(o.Name, sweptFolder)
			asked := strings.HasPrefix(o.Name, clockFolder) || strings.HasPrefix(o.Name, probeFolder)
			if (asked || isSwept && !lists[swept] || isTemporary(o.Name)) && c.old(o.Modified) {
				return c.delete(ctx, o)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// marks are a set of IDs in 8 bytes each. It may rarely have what was not added, which keeps a block that could go.
type marks struct{ list []uint64 }

func (m *marks) add(id ID) { m.list = append(m.list, id.short()) }

func (m *marks) sort() {
	slices.Sort(m.list)
	m.list = slices.Compact(m.list)
}

func (m *marks) has(id ID) bool {
	_, found := slices.BinarySearch(m.list, id.short())
	return found
}
