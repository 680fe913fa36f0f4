package transfer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
)

// Uploads are the uploads of one agent: what the server writes and the fetches read. Each has a directory of its own,
// named after the image's UID; the directories outlive the process, and their uploads with them.
type Uploads struct {
	idle     time.Duration
	maxBytes int64
	clock    clock.Clock

	mu    sync.Mutex
	byDir map[string]*upload
}

// DefaultIdle is how long an upload may bring nothing before it expires.
const DefaultIdle = time.Hour

// NewUploads makes the agent's Uploads. idle is DefaultIdle when it is 0; an upload may have maxBytes, any number when that
// is 0.
func NewUploads(idle time.Duration, maxBytes int64, c clock.Clock) *Uploads {
	if idle == 0 {
		idle = DefaultIdle
	}
	return &Uploads{idle: idle, maxBytes: maxBytes, clock: c, byDir: map[string]*upload{}}
}

// upload is one upload. It exists in memory before its first byte, for a reader that waits for that.
type upload struct {
	uid, dir string
	idle     time.Duration
	clock    clock.Clock

	writing sync.Mutex // held while the file is made or written

	mu      sync.Mutex
	changed chan struct{} // closed, and made anew, with every change
	begun   bool          // the directory holds an upload
	nonce   string        // of its creation
	offset  int64         // bytes that are there
	bytes   int64         // of the whole; -1 while that is not told
	active  time.Time     // when something last came
	fault   error         // why the disk takes no more
	dropped bool          // nothing is read or written any more
	kept    []piece       // what was written last, in memory
	reader  *reader       // who reads behind
	taken   chan struct{} // has an item when the reader took something
}

// at returns the upload in a directory, as the disk has it when it is seen for the first time.
func (u *Uploads) at(uid, dir string) (*upload, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if up := u.byDir[dir]; up != nil {
		return up, nil
	}
	up := &upload{uid: uid, dir: dir, idle: u.idle, clock: u.clock, changed: make(chan struct{}), taken: make(chan struct{}, 1), bytes: -1, active: u.clock.Now()}
	if err := up.load(); err != nil {
		return nil, fmt.Errorf("read the upload in %s: %w", dir, err)
	}
	u.byDir[dir] = up
	return up, nil
}

// Drop ends an upload and removes what it brought from the disk's staging directory. Whoever reads or writes it is told. No such upload is success.
func (u *Uploads) Drop(dir string) error {
	u.mu.Lock()
	up := u.byDir[dir]
	delete(u.byDir, dir)
	u.mu.Unlock()
	if up != nil {
		up.change(func() { up.dropped = true })
	}
	return disk.Layout(filepath.Dir(filepath.Dir(dir))).Remove(dir)
}

// file holds the bytes.
func (up *upload) file() string { return filepath.Join(up.dir, up.uid) }

// infoFile is where tusd keeps what it knows of an upload.
func (up *upload) infoFile() string { return up.file() + ".info" }

// load takes up what an earlier process left. Its locks are void: no other process serves this disk.
func (up *upload) load() error {
	for _, suffix := range []string{".lock", ".stop"} {
		if err := os.Remove(up.file() + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	text, err := os.ReadFile(up.infoFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var info handler.FileInfo
	if json.Unmarshal(text, &info) != nil || info.ID != up.uid {
		return os.RemoveAll(up.dir) // killed while it was being created: it holds nothing
	}
	stat, err := os.Stat(up.file())
	if err != nil {
		return err
	}
	up.take(info, stat.Size())
	return nil
}

// take makes the upload that which tusd knows.
func (up *upload) take(info handler.FileInfo, offset int64) {
	up.begun, up.nonce, up.offset, up.bytes = true, info.MetaData[nonceKey], offset, info.Size
	up.fault = nil
	if info.SizeIsDeferred {
		up.bytes = -1
	}
}

// change changes the upload and tells who waits for that.
func (up *upload) change(do func()) {
	up.mu.Lock()
	defer up.mu.Unlock()
	do()
	close(up.changed)
	up.changed = make(chan struct{})
}

// append calls write, which makes the file longer by a piece and returns its size, unless nothing may come any more, or the upload was
// begun anew since the caller looked at it.
func (up *upload) append(nonce string, p piece, write func() (int64, error)) error {
	up.writing.Lock()
	defer up.writing.Unlock()
	up.mu.Lock()
	err := up.ended()
	if err == nil && up.nonce != nonce {
		err = backingimage.Errorf(backingimage.Conflict, "the upload was begun anew by another request")
	}
	up.mu.Unlock()
	if err != nil {
		return err
	}
	offset, err := write()
	if err != nil {
		return err
	}
	up.change(func() {
		up.offset, up.active, up.fault = offset, up.clock.Now(), nil
		up.kept = append(up.kept, p)
	})
	return nil
}

// begin calls create, which makes the files of a new upload, unless there is one that has bytes.
func (up *upload) begin(create func() (handler.FileInfo, error)) error {
	up.writing.Lock()
	defer up.writing.Unlock()
	up.mu.Lock()
	err := up.ended()
	if err == nil && up.begun && up.offset > 0 {
		err = backingimage.Errorf(backingimage.Conflict, "the image has an upload of which %d bytes are here; continue it (HEAD, then PATCH), or delete the image", up.offset)
	}
	up.mu.Unlock()
	if err != nil {
		return err
	}
	info, err := create()
	if err != nil {
		return err
	}
	up.change(func() { up.take(info, 0); up.active = up.clock.Now() })
	return nil
}

// expires is when an upload that stays idle does; the zero time for one that has not begun, or is complete.
func (up *upload) expires() time.Time {
	if !up.begun || up.offset == up.bytes {
		return time.Time{}
	}
	return up.active.Add(up.idle)
}

// ended is why nothing can come any more: Precondition; nil while something can. The caller has the lock.
func (up *upload) ended() error {
	if up.dropped {
		return backingimage.Errorf(backingimage.Precondition, "the upload was removed; start it anew")
	}
	if at := up.expires(); !at.IsZero() && !up.clock.Now().Before(at) {
		return backingimage.Errorf(backingimage.Precondition, "the upload was idle for %s and has expired; delete the image, create it anew and upload again", up.idle)
	}
	return nil
}

// alive is ended for callers without the lock.
func (up *upload) alive() error {
	up.mu.Lock()
	defer up.mu.Unlock()
	return up.ended()
}

// wait returns when ready does not say "not yet" any more, or with why there is no use in waiting.
func (up *upload) wait(ctx context.Context, ready func() (bool, error)) error {
	for {
		up.mu.Lock()
		ok, err := ready()
		if !ok && err == nil {
			err = up.ended()
		}
		changed, expires := up.changed, up.expires()
		up.mu.Unlock()
		if ok || err != nil {
			return err
		}
		if err := up.pause(ctx, changed, expires); err != nil {
			return err
		}
	}
}

// pause sleeps until something changes or the upload expires.
func (up *upload) pause(ctx context.Context, changed <-chan struct{}, expires time.Time) error {
	var expired <-chan time.Time
	if !expires.IsZero() {
		timer := up.clock.NewTimer(expires.Sub(up.clock.Now()))
		defer timer.Stop()
		expired = timer.C()
	}
	select {
	case <-changed:
		return nil
	case <-expired:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
