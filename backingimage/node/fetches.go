package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// fetches are the goroutines that make copies, by copy name, at most max at once beside those that wait for people.
type fetches struct {
	max  int
	mu   sync.Mutex
	byID map[string]*running
}

type running struct {
	cancel context.CancelFunc
	done   chan struct{}
	kind   fetchKind
}

// fetchKind is what there is to know of a fetch beside its name.
type fetchKind struct {
	waits      bool // for people: it takes no place
	fromSource bool // it asks the image's source, as only the origin may
	fromPeers  bool // it asks other nodes, as one copy of an image does at a time: what came once is copied from disk to disk then
}

func newFetches(max int) *fetches { return &fetches{max: max, byID: map[string]*running{}} }

// start runs work in a goroutine of its own, unless one runs under that name (then nothing is done) or it has to wait: then it returns
// for what. One that waits for people takes no place.
func (f *fetches) start(name string, kind fetchKind, work func(context.Context), log klog.Logger) (waits string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byID[name] != nil {
		return ""
	}
	if other := f.beside(name); other != "" && kind.fromPeers {
		return fmt.Sprintf("waits for the copy on disk %s of this node, which is being received", other)
	}
	if !kind.waits && f.places() >= f.max {
		return fmt.Sprintf("waits for one of %d running fetches on this node to end", f.max)
	}
	// Not a child of the reconcile's context: a fetch outlives the call that began it, and stop ends it.
	ctx, cancel := context.WithCancel(klog.NewContext(context.Background(), log))
	r := &running{cancel: cancel, done: make(chan struct{}), kind: kind}
	f.byID[name] = r
	go func() {
		defer close(r.done)
		defer cancel()
		work(ctx)
	}()
	return ""
}

// beside is the disk of another copy of the same image that is being made, "" when there is none. The caller has the lock.
func (f *fetches) beside(name string) string {
	image, disk, _ := v1alpha1.ParseCopyName(name)
	for other := range f.byID {
		if uid, uuid, _ := v1alpha1.ParseCopyName(other); uid == image && uuid != disk {
			return uuid
		}
	}
	return ""
}

// places that are taken. The caller has the lock.
func (f *fetches) places() int {
	taken := 0
	for _, r := range f.byID {
		if !r.kind.waits {
			taken++
		}
	}
	return taken
}

// running reports whether a fetch runs under the name.
func (f *fetches) running(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byID[name] != nil
}

// onDisk reports whether a fetch that does not wait for people runs to a disk.
func (f *fetches) onDisk(uuid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, r := range f.byID {
		if _, disk, _ := v1alpha1.ParseCopyName(name); disk == uuid && !r.kind.waits {
			return true
		}
	}
	return false
}

// finish takes a fetch off the list; its own goroutine calls it last.
func (f *fetches) finish(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byID, name)
}

// standDown ends a fetch, without waiting for its end, if it asks the image's source.
func (f *fetches) standDown(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.byID[name]; r != nil && r.kind.fromSource {
		r.cancel()
	}
}

// cancel ends a fetch without waiting for its end.
func (f *fetches) cancel(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.byID[name]; r != nil {
		r.cancel()
	}
}

// stop ends a fetch and returns when it has ended.
func (f *fetches) stop(name string) {
	f.mu.Lock()
	r := f.byID[name]
	f.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
}

// stopAll ends every fetch and returns when all have ended.
func (f *fetches) stopAll() {
	for _, name := range f.names() {
		f.cancel(name)
	}
	for _, name := range f.names() {
		f.stop(name)
	}
}

// names of the copies that are being fetched.
func (f *fetches) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.byID))
}
