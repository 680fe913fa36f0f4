package disk

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"plinth.dev/plinth/backingimage"
)

// Set is the disks that a process has open. The agent adds and removes them while it runs; whoever makes copies or volumes
// asks it each time, so that nothing is written to a disk that is not there any more. Its methods may be called at once by many.
type Set struct {
	mu        sync.Mutex
	open      map[string]*Disk // by UUID
	listeners map[*func(string)]struct{}
}

// NewSet makes a Set of open disks. Two with one UUID are a Conflict; see Add.
func NewSet(disks ...*Disk) (*Set, error) {
	s := &Set{open: map[string]*Disk{}, listeners: map[*func(string)]struct{}{}}
	for _, d := range disks {
		if err := s.Add(d); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Add adds an open disk. Conflict, which names both paths, when another disk with its UUID is in the set: one is a copy of
// the other, and nobody can tell which.
func (s *Set) Add(d *Disk) error {
	s.mu.Lock()
	other := s.open[d.UUID()]
	if other == nil {
		s.open[d.UUID()] = d
	}
	s.mu.Unlock()
	if other != nil && other != d {
		return Twins(d.UUID(), other.Path(), d.Path())
	}
	s.Changed(d.UUID())
	return nil
}

// Twins is the Conflict of two disks that have one UUID; each is told by where it is.
func Twins(uuid, one, other string) error {
	return backingimage.Errorf(backingimage.Conflict, "disks %s and %s both say that they are disk %s; one is a copy of the other: remove it, or delete its %s, images and volumes to make it a new disk",
		one, other, uuid, IdentityFile)
}

// Get returns a disk that is open, whatever state it is in.
func (s *Set) Get(uuid string) (*Disk, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.open[uuid]
	return d, ok
}

// Use returns a disk that may be written now. NotFound when it is not open here; NotReady, with what is wrong and what to do, when
// it is and must not be written.
func (s *Set) Use(uuid string) (*Disk, error) {
	d, ok := s.Get(uuid)
	if !ok {
		return nil, backingimage.Errorf(backingimage.NotFound, "disk %s is not open on this node", uuid)
	}
	if err := d.Usable(); err != nil {
		return nil, backingimage.Errorf(backingimage.NotReady, "%w", err)
	}
	return d, nil
}

// List returns the open disks, sorted by path.
func (s *Set) List() []*Disk {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Disk, 0, len(s.open))
	for _, d := range s.open {
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b *Disk) int { return cmp.Compare(a.Path(), b.Path()) })
	return list
}

// Remove takes a disk out of the set without closing it, and tells whether it was there.
func (s *Set) Remove(d *Disk) bool {
	s.mu.Lock()
	there := s.open[d.UUID()] == d
	if there {
		delete(s.open, d.UUID())
	}
	s.mu.Unlock()
	if there {
		s.Changed(d.UUID())
	}
	return there
}

// Close closes every disk and empties the set.
func (s *Set) Close(ctx context.Context) error {
	var errs []error
	for _, d := range s.List() {
		s.Remove(d)
		errs = append(errs, d.Close(ctx))
	}
	return errors.Join(errs...)
}

// OnChange calls fn with the UUID of each disk that is added or removed, or of which Changed is told. fn must not block. The
// returned function ends the calls.
func (s *Set) OnChange(fn func(uuid string)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := &fn
	s.listeners[key] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, key)
	}
}

// Changed tells who listens that a disk can be used again, or no longer.
func (s *Set) Changed(uuid string) {
	s.mu.Lock()
	listeners := make([]func(string), 0, len(s.listeners))
	for fn := range s.listeners {
		listeners = append(listeners, *fn)
	}
	s.mu.Unlock()
	for _, fn := range listeners {
		fn(uuid)
	}
}
