package placement

import (
	"maps"
	"sync"
)

// Ledger keeps what is promised of each disk, so that nobody has to add up every copy and volume of a cluster to place
// one. The zero Ledger is empty and ready.
type Ledger struct {
	mu      sync.Mutex
	entries map[string]entry // by key
	byDisk  map[string]int64 // bytes
}

type entry struct {
	disk  string
	bytes int64
}

// Set says that the thing of that key takes bytes of a disk, whatever it took before.
func (l *Ledger) Set(key, disk string, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries == nil {
		l.entries, l.byDisk = map[string]entry{}, map[string]int64{}
	}
	l.drop(key)
	l.entries[key] = entry{disk, bytes}
	l.byDisk[disk] += bytes
}

// Drop says that the thing of that key takes nothing any more; one that is not known is success.
func (l *Ledger) Drop(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(key)
}

func (l *Ledger) drop(key string) {
	e, known := l.entries[key]
	if !known {
		return
	}
	delete(l.entries, key)
	if l.byDisk[e.disk] -= e.bytes; l.byDisk[e.disk] == 0 {
		delete(l.byDisk, e.disk)
	}
}

// Promised returns the bytes that are taken of each disk, by its UUID; the map is the caller's.
func (l *Ledger) Promised() map[string]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.byDisk)
}
