package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// Source is an upload as a source.Source: who reads it waits for what has not arrived. It ends with the upload, or, when
// that expired or was removed, with Precondition; with Full while the disk takes no more.
type Source struct {
	name   string // of the image
	upload *upload

	mu    sync.Mutex
	local *os.File
}

// Source of the image of that name and UID, whose upload is or will be in a directory.
func (u *Uploads) Source(name, uid, dir string) (*Source, error) {
	up, err := u.at(uid, dir)
	if err != nil {
		return nil, err
	}
	return &Source{name: name, upload: up}, nil
}

// Open waits until the upload has begun. Another upload than the one that validator names, or one that is shorter than
// offset, is given from its beginning.
func (s *Source) Open(ctx context.Context, offset int64, validator string) (*source.Body, error) {
	up := s.upload
	if err := up.wait(ctx, func() (bool, error) { return up.begun && !up.dropped, nil }); err != nil {
		return nil, err
	}
	f, err := os.Open(up.file())
	if err != nil {
		return nil, fmt.Errorf("read the upload: %w", err)
	}
	up.mu.Lock()
	defer up.mu.Unlock()
	if validator != "" && validator != up.nonce || offset > up.offset {
		offset = 0
	}
	up.reader = &reader{ctx: ctx, file: f, at: offset, nonce: up.nonce, upload: up}
	return &source.Body{ReadCloser: up.reader, Offset: offset, Bytes: up.bytes, Validator: up.nonce}, nil
}

// String says what the bytes come from.
func (s *Source) String() string { return "upload of image " + s.name }

// Identity is of the image: whatever is uploaded for it is the same source.
func (s *Source) Identity() string {
	sum := sha256.Sum256([]byte("upload " + s.upload.uid))
	return hex.EncodeToString(sum[:])
}

// LocalFile is the file that the bytes are in, at their offsets; nil when there is none yet. It stays open until Close.
func (s *Source) LocalFile() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.local == nil {
		s.local, _ = os.Open(s.upload.file()) // who gets none reads
	}
	return s.local
}

// Close closes the file that LocalFile gave.
func (s *Source) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.local != nil {
		s.local.Close()
		s.local = nil
	}
}

// pauseShown is how long an upload may bring nothing before people are told.
const pauseShown = 10 * time.Second

// Waits says why no bytes come just now, in a sentence; "" while they do, and after the last.
func (s *Source) Waits() string {
	up := s.upload
	up.mu.Lock()
	defer up.mu.Unlock()
	switch idle := up.clock.Since(up.active); {
	case !up.begun || up.offset == 0 && up.bytes != 0:
		return fmt.Sprintf("waits for the upload: plinth image upload FILE --name %s", s.name)
	case up.offset == up.bytes || idle < pauseShown:
		return ""
	case up.bytes > 0:
		return fmt.Sprintf("the upload pauses at %d %%; it expires at %s", up.offset*100/up.bytes, up.expires().UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("the upload pauses at %s; it expires at %s", backingimage.SizeText(up.offset), up.expires().UTC().Format(time.RFC3339))
}

// reader reads behind the bytes that arrive.
type reader struct {
	ctx    context.Context
	file   *os.File
	nonce  string
	upload *upload

	// The upload's lock guards these.
	at   int64
	late bool // no writer waits for it, until it has caught up
}

// Read returns what is there, and waits while there is nothing.
func (r *reader) Read(p []byte) (int, error) {
	up := r.upload
	var there int64
	err := up.wait(r.ctx, func() (bool, error) {
		if there = up.offset - r.at; up.nonce != r.nonce {
			return false, backingimage.Errorf(backingimage.NotReady, "the upload was begun anew")
		}
		if there > 0 || up.dropped {
			return there > 0 && !up.dropped, nil
		}
		r.late = false
		if up.offset == up.bytes {
			return false, io.EOF
		}
		return false, up.fault
	})
	if err != nil {
		return 0, err
	}
	p = p[:min(there, int64(len(p)))]
	if n := up.takeKept(r, p); n > 0 {
		return n, nil
	}
	n, err := r.file.ReadAt(p, r.at)
	if n > 0 {
		err = nil
	}
	up.moved(r, n)
	return n, err
}

// Close implements io.Closer.
func (r *reader) Close() error {
	r.upload.left(r)
	return r.file.Close()
}
