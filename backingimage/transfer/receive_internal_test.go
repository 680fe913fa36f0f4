package transfer

import (
	"bytes"
	"context"
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
)

// giver is an agent that has one content, and may misbehave.
type giver struct {
	content  []byte
	manifest []byte
	spoil    func(http.ResponseWriter, *http.Request) bool // answers itself, when it returns true
	address  string
	hash     string
}

func mustGiver(t *testing.T, content []byte, spoil func(http.ResponseWriter, *http.Request) bool) *giver {
	t.Helper()
	id, err := OpenIdentity(t.TempDir())
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	g := &giver{content: content, manifest: manifestOf(content).Encode(), spoil: spoil, address: l.Addr().String(), hash: id.PublicKeyHash()}
	server := &http.Server{Handler: g}
	go server.Serve(tls.NewListener(l, id.serverConfig())) // ends with Close
	t.Cleanup(func() { server.Close() })
	return g
}

func (g *giver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/manifest") {
		_, _ = w.Write(g.manifest)
		return
	}
	if g.spoil != nil && g.spoil(w, r) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(g.content))
}

func manifestOf(content []byte) *manifest.Manifest {
	var b manifest.Builder
	for i := 0; i*manifest.ChunkBytes < len(content); i++ {
		b.Add(int64(i), content[i*manifest.ChunkBytes:min((i+1)*manifest.ChunkBytes, len(content))])
	}
	return b.Manifest(int64(len(content)))
}

func TestReceivingBelievesNobody(t *testing.T) {
	content := make([]byte, 11*manifest.ChunkBytes+512)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(content)
	clear(content[2*manifest.ChunkBytes : 7*manifest.ChunkBytes])
	other := bytes.Clone(content)
	for i := 0; i < len(other); i += 100_000 {
		other[i]++
	}
	wrong := func(w http.ResponseWriter, r *http.Request) bool {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(other))
		return true
	}
	short := func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Length", "2097152")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(make([]byte, 1000))
		panic(http.ErrAbortHandler)
	}
	for _, tc := range []struct {
		name   string
		givers []*giver
		kind   backingimage.Kind // 0: it must succeed
	}{
		{"one good agent", []*giver{mustGiver(t, content, nil)}, 0},
		{"one sends other bytes, another is good", []*giver{mustGiver(t, content, wrong), mustGiver(t, content, nil)}, 0},
		{"one breaks off, another is good", []*giver{mustGiver(t, content, short), mustGiver(t, content, nil)}, 0},
		{"one has another content, another is good", []*giver{mustGiver(t, content[:5<<20], nil), mustGiver(t, content, nil)}, 0},
		{"all send other bytes", []*giver{mustGiver(t, content, wrong)}, backingimage.Corrupt},
		{"all have another content", []*giver{mustGiver(t, content[:5<<20], nil)}, backingimage.Corrupt},
		{"all break off", []*giver{mustGiver(t, content, short)}, backingimage.NotReady},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := receive(t, content, tc.givers)
			if tc.kind == 0 && (err != nil || !bytes.Equal(got, content)) {
				t.Errorf("%d bytes came, and they differ (%v)", len(got), err)
			}
			if tc.kind != 0 && !backingimage.Is(err, tc.kind) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// receive gets a content from givers, in order.
func receive(t *testing.T, content []byte, givers []*giver) ([]byte, error) {
	r := &Receiving{ContentDigest: manifestOf(content).ContentDigest(), Patience: time.Second, Dial: func(context.Context) ([]*Client, error) {
		var clients []*Client
		for _, g := range givers {
			clients = append(clients, NewClient(g.address, g.hash, "uid", "token"))
		}
		return clients, nil
	}}
	m, err := r.Manifest(t.Context())
	if err != nil {
		return nil, err
	}
	got := make([]byte, m.Bytes())
	last := int64(-1)
	err = r.Chunks(t.Context(), m, func(index int64) (bool, error) { return !m.Digest(index).IsZero(), nil }, func(index int64, data []byte) error {
		if index <= last {
			t.Errorf("chunk %d comes after chunk %d", index, last)
		}
		last = index
		copy(got[index*manifest.ChunkBytes:], data)
		return nil
	})
	return got, err
}
