package transfer

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// taker is an agent that takes one upload.
type taker struct {
	address, hash string
	take          func(request int, body io.Reader) (status int) // called with each PATCH, under the lock

	mu       sync.Mutex
	mark     string // the upload's metadata; "" before it begins
	bytes    string // of the whole, "" while not told
	got      bytes.Buffer
	requests int
}

func mustTaker(t *testing.T, take func(k *taker, request int, body io.Reader) (status int)) *taker {
	k := &taker{}
	k.take = func(request int, body io.Reader) int { return take(k, request, body) }
	g := mustGiver(t, nil, func(w http.ResponseWriter, r *http.Request) bool { k.serve(w, r); return true })
	k.address, k.hash = g.address, g.hash
	return k
}

func (k *taker) serve(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case r.Method == http.MethodPost:
		k.mark, k.bytes = r.Header.Get("Upload-Metadata"), r.Header.Get("Upload-Length")
		w.WriteHeader(http.StatusCreated)
		return
	case k.mark == "":
		http.NotFound(w, r)
		return
	case r.Method == http.MethodPatch && r.Header.Get("Upload-Offset") != strconv.Itoa(k.got.Len()):
		http.Error(w, "the offset is another", http.StatusConflict)
		return
	case r.Header.Get("Upload-Length") != "":
		k.bytes = r.Header.Get("Upload-Length")
	case r.Method == http.MethodPatch:
		k.requests++
		if status := k.take(k.requests, r.Body); status != http.StatusOK {
			w.Header().Set("Connection", "close") // else the library reads the rest first
			http.Error(w, "this agent is being restarted", status)
			return
		}
	}
	w.Header().Set("Upload-Offset", strconv.Itoa(k.got.Len()))
	w.Header().Set("Upload-Length", k.bytes)
	w.Header().Set("Upload-Metadata", k.mark)
}

// sending is a file on its way to the taker.
func (k *taker) sending(f *os.File) *Sending {
	return &Sending{File: f, Dial: func(context.Context) (*Client, error) { return NewClient(k.address, k.hash, "uid", NewToken()), nil }}
}

func (k *taker) mustHave(t *testing.T, content []byte) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if !bytes.Equal(k.got.Bytes(), content) || k.bytes != strconv.Itoa(len(content)) {
		t.Errorf("after %d requests the agent has %d bytes of %q that are not the file's %d", k.requests, k.got.Len(), k.bytes, len(content))
	}
}

func TestAnAgentThatAnswersBeforeItHasAllGetsTheSameFile(t *testing.T) {
	content := make([]byte, 40_000)
	_, _ = rand.Read(content)
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, content, 0o600))
	file, err := os.Open(path)
	must(t, err)
	defer file.Close()
	k := mustTaker(t, func(k *taker, request int, body io.Reader) int {
		if request%2 == 0 {
			_, _ = io.Copy(&k.got, body) // what does not come is asked for again
			return http.StatusOK
		}
		_, _ = io.CopyN(&k.got, body, 3000)
		return http.StatusServiceUnavailable
	})
	s := k.sending(file)
	s.BytesPerSecond = 20_000 // so that a read is on its way when the answer comes
	must(t, s.Send(t.Context()))
	k.mustHave(t, content)
}

func TestAPipeThatPausesIsWaitedFor(t *testing.T) {
	defer func(before time.Duration) { streamPause = before }(streamPause)
	streamPause = 10 * time.Millisecond
	content := make([]byte, 300_000)
	_, _ = rand.Read(content)
	out, in, err := os.Pipe()
	must(t, err)
	defer out.Close()
	parts := make(chan []byte, 3)
	for _, part := range [][]byte{content[:1], content[1:200_000], content[200_000:]} {
		parts <- part
	}
	close(parts)
	next := func() {
		if part, more := <-parts; more {
			go in.Write(part) // what does not come is missed below
		} else {
			in.Close()
		}
	}
	k := mustTaker(t, func(k *taker, _ int, body io.Reader) int {
		_, _ = io.Copy(&k.got, body)
		for _, end := range []int{1, 200_000, 300_000} {
			if k.got.Len() == end {
				next() // only when the request before has ended
			}
		}
		return http.StatusOK
	})
	next()
	must(t, k.sending(out).SendStream(t.Context()))
	k.mustHave(t, content)
	if k.requests < 3 {
		t.Errorf("%d requests: no pause ended one", k.requests)
	}
}
