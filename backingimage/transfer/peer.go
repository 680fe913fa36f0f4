package transfer

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

// Peer is another agent as an agent sees it: a fetch.Peer over mutual TLS.
type Peer struct {
	node, endpoint string
	client         *Client
}

var _ fetch.Peer = (*Peer)(nil)

// NewPeer makes a Peer of the agent on a node, at an address (host:port) and with a public key of that hash, for the image with
// a UID. It does not connect.
func NewPeer(id *Identity, node, address, publicKeyHash, uid string) *Peer {
	return newPeer(id, node, address, publicKeyHash, images, uid)
}

// NewSnapshotPeer is NewPeer for the snapshot with a UID.
func NewSnapshotPeer(id *Identity, node, address, publicKeyHash, uid string) *Peer {
	return newPeer(id, node, address, publicKeyHash, snapshots, uid)
}

func newPeer(id *Identity, node, address, publicKeyHash, kind, uid string) *Peer {
	config := pinnedConfig(publicKeyHash)
	config.Certificates = []tls.Certificate{id.certificate}
	return &Peer{node: node, endpoint: address + " " + publicKeyHash, client: newClient(address, kind, uid, "", config)}
}

// Node implements fetch.Peer.
func (p *Peer) Node() string { return p.node }

// Endpoint implements fetch.Peer.
func (p *Peer) Endpoint() string { return p.endpoint }

// Close implements fetch.Peer.
func (p *Peer) Close() { p.client.Close() }

// Manifest implements fetch.Peer.
func (p *Peer) Manifest(ctx context.Context) ([]byte, error) { return p.client.manifest(ctx) }

// maxRecordBytes is more than any record has.
const maxRecordBytes = 64 << 10

// Record implements fetch.Peer.
func (p *Peer) Record(ctx context.Context) (fetch.Record, error) {
	resp, err := p.client.do(ctx, http.MethodGet, p.client.path("record"), nil, nil)
	if err != nil {
		return fetch.Record{}, fmt.Errorf("get the record: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRecordBytes))
	if err != nil {
		return fetch.Record{}, p.client.broken(ctx, err)
	}
	var r fetch.Record
	if err := json.Unmarshal(text, &r); err != nil {
		return fetch.Record{}, backingimage.Errorf(backingimage.Corrupt, "get the record: agent at %s gave none that can be read: %w", p.client.address, err)
	}
	return r, nil
}

// maxBitmapBytes is more than the largest image's bitmap has.
const maxBitmapBytes = 64 << 20

// Chunks implements fetch.Peer.
func (p *Peer) Chunks(ctx context.Context, contentDigest string) (manifest.Bitmap, error) {
	resp, err := p.client.do(ctx, http.MethodGet, p.client.path("have"), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("ask which chunks are there: %w", err)
	}
	defer resp.Body.Close()
	if tag := resp.Header.Get("ETag"); tag != `"`+contentDigest+`"` {
		return nil, backingimage.Errorf(backingimage.Corrupt, "ask which chunks are there: agent at %s has another content: %.80s", p.client.address, tag)
	}
	bitmap, err := io.ReadAll(io.LimitReader(resp.Body, maxBitmapBytes))
	return bitmap, p.client.broken(ctx, err)
}

// Data implements fetch.Peer.
func (p *Peer) Data(ctx context.Context, offset, bytes int64, choice bool) (io.ReadCloser, error) {
	header := map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", offset, offset+bytes-1)}
	if choice {
		header[choiceHeader] = "1"
	}
	resp, err := p.client.do(ctx, http.MethodGet, p.client.path("data"), nil, header)
	if err != nil {
		return nil, fmt.Errorf("get data: %w", err)
	}
	if resp.StatusCode != http.StatusPartialContent || resp.ContentLength != bytes {
		resp.Body.Close()
		return nil, backingimage.Errorf(backingimage.Internal, "get data: agent at %s answered %d with %d bytes, not a range of %d", p.client.address, resp.StatusCode, resp.ContentLength, bytes)
	}
	return resp.Body, nil
}
