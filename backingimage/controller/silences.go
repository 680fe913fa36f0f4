package controller

import (
	"sync"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// silences remembers of which copies it was written that nothing is known of them. Once is enough: an agent that is back
// says what it finds before its next heartbeat tells that it is, and the two would overwrite each other until then.
type silences struct {
	mu      sync.Mutex
	written map[string]bool // by copy
}

func newSilences() *silences { return &silences{written: map[string]bool{}} }

// news returns the notes of a decision that were not written yet, and forgets the copies that can be reached again.
func (m *silences) news(s State, d Decision) []Note {
	m.mu.Lock()
	defer m.mu.Unlock()
	away := map[string]bool{}
	for name, shown := range d.shown {
		away[v1alpha1.CopyName(string(s.Image.UID), name)] = shown.State == v1alpha1.CopyUnknown
	}
	for _, c := range s.Copies {
		if !away[c.Name] {
			delete(m.written, c.Name)
		}
	}
	var news []Note
	for _, n := range d.Unknown {
		if !m.written[n.Copy] {
			news = append(news, n)
		}
	}
	return news
}

// wrote says that a copy's note is written.
func (m *silences) wrote(copy string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written[copy] = true
}

// forget forgets a copy that does not exist any more.
func (m *silences) forget(copy string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.written, copy)
}
