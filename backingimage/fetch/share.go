package fetch

import (
	"os"
	"sync"

	"plinth.dev/plinth/backingimage/manifest"
)

// Shares are the copies that this process is receiving from peers: what its server gives to others meanwhile.
type Shares struct {
	mu    sync.Mutex
	byUID map[string]*Share
}

// NewShares makes Shares with nothing in them.
func NewShares() *Shares { return &Shares{byUID: map[string]*Share{}} }

// Get returns the copy of an image that is being received.
func (s *Shares) Get(imageUID string) (*Share, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	share, ok := s.byUID[imageUID]
	return share, ok
}

// Drop ends the sharing of what is received of an image. FromPeers leaves its share behind, since the copy has yet to be put
// into its place; whoever does that drops it then. No such share is success.
func (s *Shares) Drop(imageUID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byUID, imageUID)
}

func (s *Shares) put(share *Share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byUID[share.Record.ImageUID] = share
}

// Share is a copy on its way, of which only chunks that were compared with the manifest are given away.
type Share struct {
	Record   Record // as a peer has it
	Manifest *manifest.Manifest

	path string // of the content
	mu   sync.RWMutex
	has  manifest.Bitmap
}

// ShareOf is a Share of a content that is complete, in a file.
func ShareOf(path string, r Record, m *manifest.Manifest) *Share {
	s := newShare(path, r, m)
	for i := range m.Chunks() {
		s.has.Set(i)
	}
	return s
}

func newShare(path string, r Record, m *manifest.Manifest) *Share {
	s := &Share{Record: r, Manifest: m, path: path, has: manifest.NewBitmap(m.Chunks())}
	for i := range m.Chunks() {
		if m.Digest(i).IsZero() {
			s.has.Set(i)
		}
	}
	return s
}

// Open opens the content for reading. What of it may be read is what Has says.
func (s *Share) Open() (*os.File, error) { return os.Open(s.path) }

// Has reports whether all chunks from first up to, but without, end are there.
func (s *Share) Has(first, end int64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := first; i < end; i++ {
		if !s.has.Has(i) {
			return false
		}
	}
	return first < end
}

// Chunks are the chunks that are there, those of zeros included.
func (s *Share) Chunks() manifest.Bitmap {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return append(manifest.Bitmap(nil), s.has...)
}

func (s *Share) add(index int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.has.Set(index)
}
