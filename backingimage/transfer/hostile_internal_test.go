package transfer

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestWhoNeverSendsTheRestOfARequestIsNotWaitedFor(t *testing.T) {
	defer func(before time.Duration) { restTime = before }(restTime)
	restTime = 100 * time.Millisecond
	s := &Server{places: make(chan struct{}, 1)}
	for name, answer := range map[string]http.HandlerFunc{
		"refused":  func(w http.ResponseWriter, _ *http.Request) { refuse(w, wrongToken) },
		"no route": http.NotFound,
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(s.limited(answer))
			t.Cleanup(server.Close)
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			must(t, err)
			defer conn.Close()
			_, err = fmt.Fprint(conn, "POST /v1/uploads/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
			must(t, err)
			must(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
			if text, err := io.ReadAll(conn); err != nil {
				t.Errorf("the connection stays open after %q: %v", text, err)
			}
		})
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
	var mu sync.Mutex
	var got []byte
	var mark string
	patches := 0
	g := mustGiver(t, content, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case r.Method == http.MethodPost:
			mark = r.Header.Get("Upload-Metadata")
			w.WriteHeader(http.StatusCreated)
			return true
		case mark == "":
			http.NotFound(w, r)
			return true
		case r.Method == http.MethodPatch:
			from := io.Reader(r.Body)
			if patches++; patches%2 == 1 {
				from = io.LimitReader(from, 3000)
			}
			piece, _ := io.ReadAll(from)
			got = append(got, piece...)
			if patches%2 == 1 && len(got) < len(content) {
				w.Header().Set("Connection", "close") // else the library reads the rest first
				http.Error(w, "this agent is being restarted", http.StatusServiceUnavailable)
				return true
			}
		}
		w.Header().Set("Upload-Offset", strconv.Itoa(len(got)))
		w.Header().Set("Upload-Length", strconv.Itoa(len(content)))
		w.Header().Set("Upload-Metadata", mark)
		return true
	})
	sending := &Sending{File: file, BytesPerSecond: 20_000, Dial: func(context.Context) (*Client, error) {
		return NewClient(g.address, g.hash, "uid", NewToken()), nil
	}}
	must(t, sending.Send(t.Context()))
	mu.Lock()
	defer mu.Unlock()
	if !bytes.Equal(got, content) {
		t.Errorf("after %d requests the agent has %d bytes that are not the file's %d", patches, len(got), len(content))
	}
}
