package backup

import (
	"context"
	"sync"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/backup/object"
)

// Session is the making of one backup. It keeps the rules by which a collector of garbage takes nothing from it: see the package
// comment. Its methods are safe for concurrent use.
type Session struct {
	repository *Repository
	prove      bool
	clock      func() time.Time // monotonic

	renewing  sync.Mutex
	mu        sync.Mutex
	began     time.Time       // the lists were read after this
	known     map[string]bool // lists
	condemned map[string]bool // names
	relied    map[string]bool // names of pages, and of blocks whose page is not there yet
	pages     map[ID]bool     // that are there

	stats Stats
}

// Begin starts a session. With prove it reads back what it finds in the store before it relies on it, and replaces what is damaged.
func (r *Repository) Begin(ctx context.Context, prove bool) (*Session, error) {
	s := &Session{
		repository: r, prove: prove, clock: time.Now,
		known: map[string]bool{}, condemned: map[string]bool{}, relied: map[string]bool{}, pages: map[ID]bool{},
	}
	return s, s.renew(ctx)
}

// errCondemned ends a session that took too long.
var errCondemned = backingimage.Errorf(backingimage.NotReady, "what this backup relied on became garbage meanwhile; it begins anew, and sends again what was removed")

// renew reads the lists that were written since it was last called.
func (s *Session) renew(ctx context.Context) error {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	began := s.clock()
	s.mu.Lock()
	known := s.known
	s.mu.Unlock()
	lists, err := s.repository.lists(ctx, known)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = map[string]bool{}
	for _, l := range lists {
		s.known[l.id] = true
		for _, name := range l.names {
			s.condemned[name] = true
			if s.relied[name] {
				return errCondemned
			}
		}
	}
	s.began = began
	return nil
}

// fresh renews the session when a quarter of the grace time is over.
func (s *Session) fresh(ctx context.Context) error {
	s.mu.Lock()
	due := elapsed(s.began, s.clock()) > s.repository.grace/4
	s.mu.Unlock()
	if !due {
		return nil
	}
	return s.renew(ctx)
}

// elapsed is the time between two moments of this process: by the monotonic clock, which stands still while a machine is suspended, or
// by the other one when that says more.
func elapsed(from, to time.Time) time.Duration {
	return max(to.Sub(from), to.Round(0).Sub(from.Round(0)))
}

// usable reports whether a name is not condemned, and if so notes that the session relies on it.
func (s *Session) usable(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.condemned[name] {
		return false
	}
	s.relied[name] = true
	return true
}

// forget lets blocks go that a page which is there holds now.
func (s *Session) forget(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		delete(s.relied, name)
	}
}

// find returns the name of an object with this content that the session relies on from now on; "" when there is none.
func (s *Session) find(ctx context.Context, kind byte, id ID) (string, error) {
	name := nameOf(kind, id)
	if s.usable(name) {
		there, err := s.isThere(ctx, kind, id, name)
		if err != nil || there {
			return name, err
		}
		return "", nil
	}
	found := ""
	err := s.repository.others(ctx, kind, id, func(o object.Object) error {
		if !s.usable(o.Name) {
			return nil
		}
		there, err := s.isThere(ctx, kind, id, o.Name)
		if err == nil && there {
			found, err = o.Name, errEnough
		}
		return err
	})
	return found, err
}

// isThere reports whether an object is; when the session proves, whether it is what its name says.
func (s *Session) isThere(ctx context.Context, kind byte, id ID, name string) (bool, error) {
	if !s.prove {
		return s.repository.isThere(ctx, kind, name)
	}
	_, err := s.repository.fetchName(ctx, kind, id, name, nil)
	if backingimage.Is(err, backingimage.NotFound) || backingimage.Is(err, backingimage.Corrupt) {
		return false, nil
	}
	return err == nil, err
}

// keep sees to it that an object with this content is there, and returns its name. buffer is used for what is sent.
func (s *Session) keep(ctx context.Context, kind byte, id ID, content, buffer []byte) (string, error) {
	if err := s.fresh(ctx); err != nil {
		return "", err
	}
	name, err := s.find(ctx, kind, id)
	if err != nil || name != "" {
		return name, err
	}
	if name = nameOf(kind, id); !s.usable(name) {
		name = otherName(kind, id)
		s.usable(name)
	}
	enclosed := s.repository.keys.enclose(buffer[:0], kind, id.String(), content)
	if err := s.repository.store.Put(ctx, name, enclosed); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.SentBytes += int64(len(enclosed))
	if kind == kindBlock {
		s.stats.NewBytes += int64(len(content))
	}
	return name, nil
}

// keepPage stores a page and notes that it is there; blocks are the names of what it lists.
func (s *Session) keepPage(ctx context.Context, p *page, blocks []string) (ID, error) {
	if p.isEmpty() {
		return ID{}, nil
	}
	content := p.encode()
	id := s.repository.keys.sum(content)
	if _, err := s.keep(ctx, kindPage, id, content, nil); err != nil {
		return ID{}, err
	}
	s.mu.Lock()
	s.pages[id] = true
	s.mu.Unlock()
	s.forget(blocks)
	return id, nil
}

// HasPages reports whether all pages of a content are there and can be relied on, blocks included.
func (s *Session) HasPages(ctx context.Context, c *Content) (bool, error) {
	if err := s.fresh(ctx); err != nil {
		return false, err
	}
	for _, id := range c.Pages {
		s.mu.Lock()
		has := id.IsZero() || s.pages[id]
		s.mu.Unlock()
		if has {
			continue
		}
		name, err := s.find(ctx, kindPage, id)
		if err != nil || name == "" {
			return false, err
		}
		s.mu.Lock()
		s.pages[id] = true
		s.mu.Unlock()
	}
	return true, nil
}

// Stats say what the session took so far.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Finish writes the manifest: from then on the backup is there. NotReady when the session took too long and has to be begun anew.
func (s *Session) Finish(ctx context.Context, m *Manifest) error {
	r := s.repository
	for _, c := range m.contents() {
		has, err := s.HasPages(ctx, c)
		if err != nil {
			return err
		}
		if !has {
			return errCondemned
		}
	}
	if err := r.store.Flush(); err != nil {
		return err
	}
	if err := s.renew(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	began := s.began
	m.Stats = s.stats
	s.mu.Unlock()
	m.Written = s.clock().UTC().Truncate(time.Millisecond)
	if err := r.writeManifest(ctx, m); err != nil {
		return err
	}
	if elapsed(began, s.clock()) > r.grace/2 {
		_ = r.Remove(ctx, m.ID)
		return backingimage.Errorf(backingimage.NotReady, "writing the manifest of backup %s took so long that what it needs may have become garbage; the backup begins anew", m.ID)
	}
	return nil
}
