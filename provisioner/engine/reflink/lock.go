package reflink

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lock excludes other calls for the IDs (empty ones are none): first in this process, where waiting is free, then among
// processes. Locks are taken in one order, so two calls with the same two IDs cannot wait for each other.
func (e *Engine) lock(ctx context.Context, ids ...string) (unlock func(), err error) {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == "" })
	slices.Sort(ids)
	unlock = func() {}
	release := func(before, more func()) func() { return func() { more(); before() } }
	for _, id := range ids {
		more, err := e.busy.lock(ctx, id)
		if err != nil {
			unlock()
			return nil, err
		}
		unlock = release(unlock, more)
	}
	more, err := lockRanges(ctx, e.layout.VolumesLock(), ids)
	if err != nil {
		unlock()
		return nil, err
	}
	return release(unlock, more), nil
}

// lockRanges locks one byte of a file for each ID, at the offset that the ID hashes to: locks for any number of IDs in one file that
// never grows, and two IDs that meet at one byte merely wait for each other. The locks belong to the open file (F_OFD), so they
// exclude other engines in this process as well, and a kill releases them.
func lockRanges(ctx context.Context, path string, ids []string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) { // nobody can change what is on the disk, and what is attached must be detached
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock volumes: %w", err)
	}
	for _, id := range ids {
		if err := lockByte(ctx, f, offset(id)); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock volumes: %w", err)
		}
	}
	return func() {
		all := unix.Flock_t{Type: unix.F_UNLCK}
		unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &all) // a child between fork and exec may hold a copy of the descriptor
		f.Close()
	}, nil
}

func offset(id string) int64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return int64(h.Sum64() >> 2)
}

func lockByte(ctx context.Context, f *os.File, offset int64) error {
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		l := unix.Flock_t{Type: unix.F_WRLCK, Start: offset, Len: 1}
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
		if err == nil || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// keyed is a set of locks, one for each key that someone holds or waits for.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyedLock
}

type keyedLock struct {
	held  chan struct{} // has an element while the lock is held
	users int           // holder and waiters
}

func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	l := k.join(key)
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; k.leave(key, l) }, nil
	case <-ctx.Done():
		k.leave(key, l)
		return nil, ctx.Err()
	}
}

func (k *keyed) join(key string) *keyedLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks == nil {
		k.locks = map[string]*keyedLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyedLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	return l
}

func (k *keyed) leave(key string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, key)
	}
}
