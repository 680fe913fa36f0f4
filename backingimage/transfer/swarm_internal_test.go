package transfer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

const swarmUID = "11111111-2222-3333-4444-555555555555"

// recordOf is what a giver says of its copy.
func recordOf(content []byte) fetch.Record {
	return fetch.Record{Version: 1, Image: "image", ImageUID: swarmUID, Source: "https://example.org/disk", SourceIdentity: "id", Result: fetch.Result{
		Format: "raw", SourceBytes: int64(len(content)), VirtualBytes: int64(len(content)), Checksum: "sum", ContentDigest: manifestOf(content).ContentDigest(),
	}}
}

// mustSwarmGiver is an agent that has chunks of a content, all when none are named, and may misbehave. It counts the bytes of
// chunks that it gave.
func mustSwarmGiver(t *testing.T, content []byte, chunks []int64, spoil func(http.ResponseWriter, *http.Request) bool) (*giver, *atomic.Int64) {
	t.Helper()
	gave := new(atomic.Int64)
	record, err := json.Marshal(recordOf(content))
	must(t, err)
	m := manifestOf(content)
	has := manifest.NewBitmap(m.Chunks())
	for i := range m.Chunks() {
		if chunks == nil {
			has.Set(i)
		}
	}
	for _, i := range chunks {
		has.Set(i)
	}
	return mustGiver(t, content, func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case spoil != nil && spoil(w, r):
		case strings.HasSuffix(r.URL.Path, "/record"):
			_, _ = w.Write(record)
		case strings.HasSuffix(r.URL.Path, "/have"):
			w.Header().Set("ETag", `"`+m.ContentDigest()+`"`)
			_, _ = w.Write(has)
		case strings.HasSuffix(r.URL.Path, "/data"):
			first, end, ok := chunkRange(r.Header.Get("Range"), m.Bytes())
			if !ok {
				t.Errorf("the receiver asked for %q", r.Header.Get("Range"))
			}
			for i := first; i < end; i++ {
				if !has.Has(i) {
					t.Errorf("the receiver asked for chunk %d, which this agent does not have", i)
				}
				if m.Digest(i).IsZero() {
					t.Errorf("the receiver asked for chunk %d, which is zero", i)
				}
			}
			counter := &countingWriter{w, gave}
			http.ServeContent(counter, r, "", time.Time{}, bytes.NewReader(content))
		}
		return true
	}), gave
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// swarmContent has data in some of its chunks, holes within others, and zeros in the rest.
func swarmContent(chunks int) []byte {
	content := make([]byte, chunks*manifest.ChunkBytes+1536)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(content)
	for i := 0; i < chunks; i += 4 {
		clear(content[i*manifest.ChunkBytes : (i+1)*manifest.ChunkBytes])
	}
	clear(content[manifest.ChunkBytes+300_000 : manifest.ChunkBytes+900_000])
	return content
}

// swarmJob is a job that gets a content from givers.
func swarmJob(t *testing.T, dir string, content []byte, givers ...*giver) fetch.PeerJob {
	id, err := OpenIdentity(t.TempDir())
	must(t, err)
	return fetch.PeerJob{
		Dir: dir, Image: "image", ImageUID: swarmUID, ContentDigest: manifestOf(content).ContentDigest(), Patience: 3 * time.Second, Stall: time.Second,
		Peers: func(context.Context) ([]fetch.Peer, error) {
			var list []fetch.Peer
			for i, g := range givers {
				list = append(list, NewPeer(id, fmt.Sprintf("node-%d", i), g.address, g.hash, swarmUID))
			}
			return list, nil
		},
	}
}

// mustHold checks that a directory holds a finished copy of a content.
func mustHold(t *testing.T, dir string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, disk.ImageFile))
	must(t, err)
	if !bytes.Equal(got, content) {
		t.Fatal("the copy differs")
	}
	r, err := fetch.Load(dir)
	must(t, err)
	if want := recordOf(content); r.Checksum != want.Checksum || r.Source != want.Source || r.SourceBytes != want.SourceBytes || r.RealBytes == 0 {
		t.Errorf("its record is %+v", r)
	}
	must(t, fetch.Verify(t.Context(), dir, nil))
}

func TestReceivingFromPeers(t *testing.T) {
	content := swarmContent(24)
	flipped := bytes.Clone(content)
	for i := 77; i < len(flipped); i += manifest.ChunkBytes {
		flipped[i] ^= 1
	}
	half := func(odd int64) (list []int64) {
		for i := odd; i <= 24; i += 2 {
			list = append(list, i)
		}
		return list
	}
	on := func(what string, do func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, what) {
				do(w, r)
				return true
			}
			return false
		}
	}
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	wrong := on("/data", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(flipped))
	})
	lies := on("/data", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not here", http.StatusNotFound) })
	breaks := on("/data", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "2097152")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(make([]byte, 100_000))
		panic(http.ErrAbortHandler)
	})
	stalls := on("/data", func(w http.ResponseWriter, r *http.Request) {
		first, end, _ := chunkRange(r.Header.Get("Range"), int64(len(content)))
		w.Header().Set("Content-Length", fmt.Sprint(min(end*manifest.ChunkBytes, int64(len(content)))-first*manifest.ChunkBytes))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(make([]byte, 100_000))
		_ = http.NewResponseController(w).Flush()
		silent(w, r)
	})
	otherRecord := on("/record", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"version":1,"imageUID":"other"}`) })
	otherContent := swarmContent(8)
	type peer struct {
		content []byte
		chunks  []int64
		spoil   func(http.ResponseWriter, *http.Request) bool
	}
	good := peer{content: content}
	slow := peer{content: content, spoil: func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/data") {
			time.Sleep(20 * time.Millisecond)
		}
		return false
	}}
	for _, tc := range []struct {
		name  string
		peers []peer
		says  string // of a failure; "" when it must succeed
		retry string // a reason that is counted
	}{
		{name: "one complete peer", peers: []peer{good}},
		{name: "two that have half each", peers: []peer{{content: content, chunks: half(0)}, {content: content, chunks: half(1)}}},
		{name: "three complete peers", peers: []peer{good, good, good}},
		{name: "one flips a bit, another is good", peers: []peer{{content: content, spoil: wrong}, slow}, retry: fetch.RetriedWrong},
		{name: "one lies about what it has, another is good", peers: []peer{{content: content, spoil: lies}, slow}, retry: fetch.RetriedFailed},
		{name: "one breaks off, another is good", peers: []peer{{content: content, spoil: breaks}, slow}, retry: fetch.RetriedFailed},
		{name: "one stalls within a chunk, another is good", peers: []peer{{content: content, spoil: stalls}, slow}, retry: fetch.RetriedLate},
		{name: "one accepts and says nothing, another is good", peers: []peer{{content: content, spoil: on("", silent)}, good}},
		{name: "one has another content, another is good", peers: []peer{{content: otherContent}, good}},
		{name: "one has another record, another is good", peers: []peer{{content: content, spoil: otherRecord}, good}},
		{name: "nobody", says: "waits for a peer: no other node has a copy"},
		{name: "all have another content", peers: []peer{{content: otherContent}}, says: "it has another content"},
		{name: "a record that cannot be true", peers: []peer{{content: content, spoil: otherRecord}}, says: "record is of another content"},
		{name: "the only one flips a bit", peers: []peer{{content: content, spoil: wrong}}, says: "node-0 sent wrong bytes", retry: fetch.RetriedWrong},
		{name: "the only one has half", peers: []peer{{content: content, chunks: half(0)}}, says: "node-0 has 7 of 19 chunks"},
		{name: "the only one is silent", peers: []peer{{content: content, spoil: on("", silent)}}, says: "node-0 was not heard yet"},
		{name: "the only one has nothing yet", peers: []peer{{content: content, spoil: on("", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no copy", http.StatusNotFound) })}}, says: "node-0 has nothing yet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var givers []*giver
			for _, p := range tc.peers {
				g, _ := mustSwarmGiver(t, p.content, p.chunks, p.spoil)
				givers = append(givers, g)
			}
			dir := filepath.Join(t.TempDir(), "image")
			job := swarmJob(t, dir, content, givers...)
			var retried atomic.Bool
			job.Retried = func(reason string) {
				if reason == tc.retry {
					retried.Store(true)
				}
			}
			_, err := fetch.FromPeers(t.Context(), job, nil)
			if tc.says != "" {
				if !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v", err)
				}
			} else {
				must(t, err)
				mustHold(t, dir, content)
			}
			if tc.retry != "" && !retried.Load() {
				t.Errorf("no retry for the reason %q was counted", tc.retry)
			}
		})
	}
}

func TestWhatIsOnDiskIsNotBelieved(t *testing.T) {
	content := swarmContent(16)
	g, gave := mustSwarmGiver(t, content, nil, nil)
	dir := filepath.Join(t.TempDir(), "image")
	must(t, os.Mkdir(dir, 0o700))
	there := bytes.Clone(content)
	there[0] = 1                           // a chunk that is zero
	there[manifest.ChunkBytes+500_000] = 1 // the hole within a chunk
	there[3*manifest.ChunkBytes] ^= 1
	must(t, os.WriteFile(filepath.Join(dir, disk.ImageFile), there[:9*manifest.ChunkBytes], 0o600))
	_, err := fetch.FromPeers(t.Context(), swarmJob(t, dir, content, g), nil)
	must(t, err)
	mustHold(t, dir, content)
	// 2, 5, 6 and 7 of the first nine chunks with data are right
	if want := manifestOf(content).DataBytes() - 4*manifest.ChunkBytes; gave.Load() != want {
		t.Errorf("%d bytes came, want %d", gave.Load(), want)
	}
}

func TestALiarIsGoneAroundWhenItMoves(t *testing.T) {
	content := swarmContent(8)
	bad, _ := mustSwarmGiver(t, content, nil, func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return true
	})
	good, _ := mustSwarmGiver(t, content, nil, nil)
	dir := filepath.Join(t.TempDir(), "image")
	job := swarmJob(t, dir, content, bad)
	job.Patience = 30 * time.Second
	first, list := job.Peers, swarmJob(t, dir, content, good).Peers
	var calls atomic.Int32
	job.Peers = func(ctx context.Context) ([]fetch.Peer, error) { // the node comes up again, elsewhere
		if calls.Add(1) == 1 {
			return first(ctx)
		}
		return list(ctx)
	}
	_, err := fetch.FromPeers(t.Context(), job, nil)
	must(t, err)
	mustHold(t, dir, content)
}

func TestOneChunkFromAnyPeer(t *testing.T) {
	content := swarmContent(8)
	flipped := bytes.Clone(content)
	flipped[5*manifest.ChunkBytes+77] ^= 1
	bad, _ := mustSwarmGiver(t, content, nil, func(w http.ResponseWriter, r *http.Request) bool {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(flipped))
		return true
	})
	good, _ := mustSwarmGiver(t, content, nil, nil)
	m := manifestOf(content)
	chunk := make([]byte, manifest.ChunkBytes)
	ask := func(givers ...*giver) error {
		peers, err := swarmJob(t, "unused", content, givers...).Peers(t.Context())
		must(t, err)
		return fetch.ChunkFromPeers(t.Context(), peers, 5, m.Digest(5), chunk)
	}
	must(t, ask(bad, good))
	if manifest.Sum(chunk) != m.Digest(5) {
		t.Error("the chunk is wrong")
	}
	if err := ask(); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("without a peer: %v", err)
	}
	if err := ask(bad); !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), "node-0: it sent chunk 5") {
		t.Errorf("got %v", err)
	}
}
