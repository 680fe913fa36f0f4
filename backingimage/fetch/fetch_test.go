package fetch_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
)

// loopback opens what tests' servers listen on.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// mustSource makes a source of a test server's URL.
func mustSource(tb testing.TB, url string) source.Source {
	tb.Helper()
	s, err := source.NewHTTP(url, source.Options{AllowCIDRs: loopback, StallTimeout: time.Second})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// image makes bytes as images have them: data, and zeros between.
func image(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	p := make([]byte, n)
	for at := 0; at < n; at += 300 << 10 {
		r.Read(p[at:min(at+100<<10, n)])
	}
	return p
}

func TestRun(t *testing.T) {
	content := image(9<<20 + 77)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Unix(1700000000, 0), bytes.NewReader(content))
	}))
	defer server.Close()
	dir := filepath.Join(t.TempDir(), "staging")
	result, err := fetch.Run(context.Background(), fetch.Job{Dir: dir, Image: "a", ImageUID: "1", Source: mustSource(t, server.URL)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(content)
	if result.Checksum != hex.EncodeToString(sum[:]) || result.Format != "raw" {
		t.Errorf("result is %+v", result)
	}
	got, err := os.ReadFile(filepath.Join(dir, disk.ImageFile))
	if err != nil {
		t.Fatal(err)
	}
	if want := append(bytes.Clone(content), make([]byte, 512-77)...); !bytes.Equal(got, want) {
		t.Error("content differs")
	}
	if err := fetch.Verify(context.Background(), dir, nil); err != nil {
		t.Error(err)
	}
}
