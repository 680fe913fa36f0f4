package transfer

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
	testingclock "k8s.io/utils/clock/testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

func TestIdentityIsKeptAndPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	first, err := OpenIdentity(dir)
	must(t, err)
	second, err := OpenIdentity(dir)
	must(t, err)
	if first.PublicKeyHash() != second.PublicKeyHash() || len(first.PublicKeyHash()) != 64 {
		t.Errorf("the key is %s, then %s", first.PublicKeyHash(), second.PublicKeyHash())
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	must(t, os.WriteFile(filepath.Join(dir, keyFile), []byte("no key"), 0o600))
	if _, err := OpenIdentity(dir); !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), keyFile) {
		t.Errorf("a file that is no key: %v", err)
	}
}

func TestClientAcceptsTheKeyThatTheAPINames(t *testing.T) {
	id, err := OpenIdentity(t.TempDir())
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("Authorization")) })}
	go server.Serve(tls.NewListener(l, id.serverConfig())) // ends with Close
	defer server.Close()
	for _, tc := range []struct {
		name, hash string
		kind       backingimage.Kind
		ok         bool
	}{
		{"the agent's key", id.PublicKeyHash(), 0, true},
		{"another key", strings.Repeat("0", 64), backingimage.Precondition, false},
		{"no key", "", backingimage.Precondition, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := NewClient(l.Addr().String(), tc.hash, "uid", "secret")
			defer c.Close()
			text, err := c.manifest(t.Context())
			if tc.ok && (err != nil || string(text) != "Bearer secret") {
				t.Errorf("got %q, %v", text, err)
			}
			if !tc.ok && (!backingimage.Is(err, tc.kind) || strings.Contains(err.Error(), "secret")) {
				t.Errorf("got %q, %v", text, err)
			}
		})
	}
}

func TestTokensOpenUntilTheyExpire(t *testing.T) {
	now := time.Unix(1e9, 0)
	good, old := NewToken(), NewToken()
	tokens := Grant(nil, old, now.Add(-time.Hour), now.Add(-2*time.Hour))
	tokens = append(tokens, v1alpha1.AccessToken{SHA256: good.Hash(), ExpirationTime: metav1.NewTime(now.Add(time.Hour))})
	for _, tc := range []struct {
		name           string
		token          Token
		found, expired bool
	}{
		{"good", good, true, false}, {"expired", old, true, true}, {"unknown", NewToken(), false, false}, {"empty", "", false, false}, {"a hash is no token", Token(good.Hash()), false, false},
	} {
		if found, expired := opens(tc.token, tokens, now); found != tc.found || expired != tc.expired {
			t.Errorf("%s: found %t, expired %t", tc.name, found, expired)
		}
	}
	tokens = Grant(tokens, NewToken(), now.Add(2*time.Hour), now)
	if found, _ := opens(old, tokens, now); found || len(tokens) != 2 {
		t.Errorf("an expired token is kept: %v", tokens)
	}
	for range 20 {
		tokens = Grant(tokens, NewToken(), now.Add(3*time.Hour), now)
	}
	if found, _ := opens(good, tokens, now); found || len(tokens) != maxTokens {
		t.Errorf("%d tokens are kept, the oldest one: %t", len(tokens), found)
	}
	if left := Revoke(Grant(nil, good, now.Add(time.Hour), now), good); len(left) != 0 {
		t.Errorf("a token that was taken back is still there: %v", left)
	}
}

// mustUpload begins an upload as a request would.
func mustUpload(t *testing.T, u *Uploads, dir string, bytes int64) (*upload, *incoming) {
	t.Helper()
	up, err := u.at("uid", dir)
	must(t, err)
	must(t, up.begin(func() (handler.FileInfo, error) {
		info := handler.FileInfo{ID: "uid", Size: bytes, SizeIsDeferred: bytes < 0, MetaData: handler.MetaData{nonceKey: string(NewToken())}}
		must(t, os.MkdirAll(dir, 0o700))
		must(t, os.WriteFile(up.file(), nil, 0o600))
		return info, saveInfo(up, info)
	}))
	return up, &incoming{upload: up, nonce: up.nonce, metrics: NewMetrics(nil)}
}

func stagedUpload(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "staging")
	must(t, os.Mkdir(dir, 0o700))
	return filepath.Join(dir, "upload-uid")
}

func TestSourceReadsBehindTheUpload(t *testing.T) {
	u := NewUploads(time.Hour, 0, testingclock.NewFakeClock(time.Unix(1e9, 0)))
	dir := stagedUpload(t)
	content := make([]byte, 3<<20+777)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(content)
	clear(content[1<<20 : 2<<20])
	s, err := u.Source("image", "uid", dir)
	must(t, err)
	if w := s.Waits(); !strings.Contains(w, "plinth image upload FILE --name image") {
		t.Errorf("before the upload: %q", w)
	}
	read := make(chan []byte)
	go func() {
		body, err := s.Open(context.Background(), 0, "")
		if err != nil {
			t.Error(err)
			close(read)
			return
		}
		got, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		read <- got
	}()
	_, in := mustUpload(t, u, dir, int64(len(content)))
	for at := 0; at < len(content); at += 700_001 {
		piece := content[at:min(at+700_001, len(content))]
		if n, err := in.WriteChunk(t.Context(), int64(at), bytes.NewReader(piece)); err != nil || n != int64(len(piece)) {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if got := <-read; !bytes.Equal(got, content) {
		t.Errorf("%d bytes were read, and they differ", len(got))
	}
	if w := s.Waits(); w != "" {
		t.Errorf("after the upload: %q", w)
	}
}

func TestAnUploadIsTakenUpByTheNextProcess(t *testing.T) {
	c := testingclock.NewFakeClock(time.Unix(1e9, 0))
	dir := stagedUpload(t)
	before, in := mustUpload(t, NewUploads(time.Hour, 0, c), dir, 100)
	_, err := in.WriteChunk(t.Context(), 0, strings.NewReader("0123456789"))
	must(t, err)
	must(t, os.WriteFile(before.file()+".lock", []byte("1\n"), 0o600)) // of a process that was killed
	u := NewUploads(time.Hour, 0, c)
	s, err := u.Source("image", "uid", dir)
	must(t, err)
	for _, tc := range []struct {
		name      string
		offset    int64
		validator string
		want      int64
	}{
		{"the same upload goes on", 4, before.nonce, 4},
		{"another upload is read from its beginning", 4, "other", 0},
		{"what the disk lost is read from its beginning", 11, before.nonce, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			body, err := s.Open(t.Context(), tc.offset, tc.validator)
			must(t, err)
			defer body.Close()
			if body.Offset != tc.want || body.Bytes != 100 {
				t.Errorf("offset %d of %d", body.Offset, body.Bytes)
			}
		})
	}
	if _, err := os.Stat(before.file() + ".lock"); !os.IsNotExist(err) {
		t.Errorf("the lock of a dead process is still there: %v", err)
	}
}

func TestHowAnUploadEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(*testing.T, *Uploads, *upload, *testingclock.FakeClock)
		kind backingimage.Kind
		says string
	}{
		{"it expires", func(_ *testing.T, _ *Uploads, _ *upload, c *testingclock.FakeClock) { c.Step(time.Hour) }, backingimage.Precondition, "idle for 1h0m0s and has expired; delete the image"},
		{"it is removed", func(t *testing.T, u *Uploads, up *upload, _ *testingclock.FakeClock) { must(t, u.Drop(up.dir)) }, backingimage.Precondition, "was removed"},
		{"the disk is full", func(_ *testing.T, _ *Uploads, up *upload, _ *testingclock.FakeClock) {
			_ = (&incoming{upload: up}).failed(fmt.Errorf("write: %w", syscall.ENOSPC))
		}, backingimage.Full, "is full"},
		{"it is begun anew", func(_ *testing.T, _ *Uploads, up *upload, _ *testingclock.FakeClock) {
			up.change(func() { up.nonce = "other" })
		}, backingimage.NotReady, "anew"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := testingclock.NewFakeClock(time.Unix(1e9, 0))
			u := NewUploads(time.Hour, 0, c)
			up, in := mustUpload(t, u, stagedUpload(t), 100)
			_, err := in.WriteChunk(t.Context(), 0, strings.NewReader("0123456789"))
			must(t, err)
			s, err := u.Source("image", "uid", up.dir)
			must(t, err)
			body, err := s.Open(t.Context(), 0, "")
			must(t, err)
			defer body.Close()
			ended := make(chan error)
			go func() {
				_, err := io.ReadAll(body)
				ended <- err
			}()
			c.Step(20 * time.Second)
			if w := s.Waits(); !strings.Contains(w, "pauses at 10 %; it expires at 2001-09-09T02:46:40Z") {
				t.Errorf("meanwhile: %q", w)
			}
			tc.end(t, u, up, c)
			if err := <-ended; !backingimage.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The image may be ready, and the upload removed, before the request that brought the last byte, or told that it was, ends.
func TestTheLastRequestOfAnUploadThatWasUsed(t *testing.T) {
	for bytes, works := range map[int64]bool{10: true, 11: false} {
		u := NewUploads(time.Hour, 0, testingclock.NewFakeClock(time.Unix(1e9, 0)))
		up, in := mustUpload(t, u, stagedUpload(t), bytes)
		_, err := in.WriteChunk(t.Context(), 0, strings.NewReader("0123456789"))
		must(t, err)
		must(t, u.Drop(up.dir))
		if n, err := in.WriteChunk(t.Context(), 10, strings.NewReader("")); n != 0 || (err == nil) != works {
			t.Errorf("%d bytes: %d, %v", bytes, n, err)
		}
		if err := in.FinishUpload(t.Context()); (err == nil) != works {
			t.Errorf("%d bytes: finishing: %v", bytes, err)
		}
	}
}

func TestTwoRequestsDoNotMixTheirFiles(t *testing.T) {
	u := NewUploads(time.Hour, 0, testingclock.NewFakeClock(time.Unix(1e9, 0)))
	dir := stagedUpload(t)
	_, first := mustUpload(t, u, dir, 100)
	_, second := mustUpload(t, u, dir, 100)
	if _, err := first.WriteChunk(t.Context(), 0, strings.NewReader("first")); err == nil {
		t.Error("a request whose upload was begun anew wrote to the new one")
	}
	if n, err := second.WriteChunk(t.Context(), 0, strings.NewReader("second")); err != nil || n != 6 {
		t.Errorf("%d, %v", n, err)
	}
	up, err := u.at("uid", dir)
	must(t, err)
	err = up.begin(func() (handler.FileInfo, error) { return handler.FileInfo{}, errors.New("it was begun") })
	if !backingimage.Is(err, backingimage.Conflict) {
		t.Errorf("an upload that has bytes is begun anew: %v", err)
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
