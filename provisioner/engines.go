package provisioner

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/provisioner/engine"
)

// Disks are the disks that this node has open, which come and go; disk.Set is them.
type Disks interface {
	// Get returns a disk that is open, whatever state it is in.
	Get(uuid string) (*disk.Disk, bool)
	// Use returns a disk that may be written now. NotFound when it is not open; NotReady, with why, when it must not be.
	Use(uuid string) (*disk.Disk, error)
	// List returns the open disks.
	List() []*disk.Disk
	// OnChange calls fn, which must not block, with a disk that is opened, closed, or can be used again or no longer.
	OnChange(fn func(uuid string)) (stop func())
}

// Engines are the engines of one node's disks. The volume loop and the attacher share them, and with them the exclusion
// of the two while one changes or looks at a volume's device and writes down what it found: what is written last is then
// what was seen last.
type Engines struct {
	disks   Disks
	make    func(*disk.Disk) engine.Engine
	mu      sync.Mutex
	made    map[string]made // by disk UUID; those of disks that were closed stay until they are opened again
	writing [64]sync.Mutex  // by the hash of the volume's ID
}

// made is the engine of a disk as it was opened.
type made struct {
	disk   *disk.Disk
	engine engine.Engine
}

// NewEngines makes the engines of a node's disks, each when it is first needed.
func NewEngines(disks Disks, make func(*disk.Disk) engine.Engine) *Engines {
	return &Engines{disks: disks, make: make, made: map[string]made{}}
}

// of returns the engine of a disk, and whether the disk is open on this node.
func (e *Engines) of(uuid string) (engine.Engine, bool) {
	d, open := e.disks.Get(uuid)
	if !open {
		return nil, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	m, ok := e.made[uuid]
	if !ok || m.disk != d {
		m = made{d, e.make(d)}
		e.made[uuid] = m
	}
	return m.engine, true
}

// usable is nil when a disk may be written, NotReady with what is wrong with it otherwise.
func (e *Engines) usable(uuid string) error {
	_, err := e.disks.Use(uuid)
	return err
}

// detach removes the volume's device from whichever disk it is on. A disk that was closed is asked too, because what was attached
// from it stays attached; that it cannot answer must not keep a volume from being unstaged.
func (e *Engines) detach(ctx context.Context, volume string) error {
	for _, d := range e.disks.List() {
		e.of(d.UUID())
	}
	e.mu.Lock()
	known := maps.Clone(e.made)
	e.mu.Unlock()
	var errs []error
	for _, uuid := range slices.Sorted(maps.Keys(known)) {
		err := known[uuid].engine.Detach(ctx, volume)
		if _, open := e.disks.Get(uuid); err != nil && !open && !backingimage.Is(err, backingimage.InUse) {
			klog.FromContext(ctx).Info("Cannot ask a disk that is gone for the volume's device", "volume", volume, "disk", uuid, "why", err.Error())
		} else if err != nil {
			errs = append(errs, fmt.Errorf("detach volume %s from disk %s: %w", volume, uuid, err))
		}
	}
	return errors.Join(errs...)
}

// lock excludes others from writing down what a volume's device is, until the returned function is called.
func (e *Engines) lock(volume string) (unlock func()) {
	h := fnv.New32a()
	h.Write([]byte(volume))
	mu := &e.writing[h.Sum32()%uint32(len(e.writing))]
	mu.Lock()
	return mu.Unlock
}
