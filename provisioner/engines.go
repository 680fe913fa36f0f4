package provisioner

import (
	"hash/fnv"
	"sync"

	"plinth.dev/plinth/provisioner/engine"
)

// Engines are the engines of one node's disks. The volume loop and the attacher share them, and with them the exclusion
// of the two while one changes or looks at a volume's device and writes down what it found: what is written last is then
// what was seen last.
type Engines struct {
	byDisk  map[string]engine.Engine
	writing [64]sync.Mutex // by the hash of the volume's ID
}

// NewEngines takes the engines by disk UUID.
func NewEngines(byDisk map[string]engine.Engine) *Engines { return &Engines{byDisk: byDisk} }

// of returns the engine of a disk, and whether the disk is this node's.
func (e *Engines) of(disk string) (engine.Engine, bool) {
	found, ok := e.byDisk[disk]
	return found, ok
}

// lock excludes others from writing down what a volume's device is, until the returned function is called.
func (e *Engines) lock(volume string) (unlock func()) {
	h := fnv.New32a()
	h.Write([]byte(volume))
	mu := &e.writing[h.Sum32()%uint32(len(e.writing))]
	mu.Lock()
	return mu.Unlock
}
