package transfer

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/fetch"
)

// Snapshots are those on this node's disks, of which this package knows that their contents do not change, and not how they are kept.
type Snapshots interface {
	// Share returns the content of a snapshot, whole, with its manifest. NotFound; NotReady, with how far it is, while the manifest is
	// being computed.
	Share(ctx context.Context, s *v1alpha1.Snapshot) (*fetch.Share, error)
	// Extents returns the size of a snapshot's content, in bytes, and where it differs from that of another, base, of the same disk, or
	// where it has data (base nil): sorted, and zeros, or equal, elsewhere. NotFound; Precondition when the two are on different disks.
	Extents(ctx context.Context, s, base *v1alpha1.Snapshot) (bytes int64, list []Extent, err error)
}

// Extent is a range of a content, in bytes.
type Extent struct{ Offset, Bytes int64 }

// snapshotByKey admits a peer. It may read every snapshot, as it may every image.
func (s *Server) snapshotByKey(r *http.Request) (call, string) {
	return s.peerCall(r, func(ctx context.Context, uid string) (c call, reason string) {
		c.snapshot, reason = s.snapshotWith(ctx, uid)
		return c, reason
	})
}

// snapshotByEither admits a peer, and who has a token of the snapshot. Who shows a certificate is judged by that.
func (s *Server) snapshotByEither(r *http.Request) (call, string) {
	if shown(r) != "" {
		return s.snapshotByKey(r)
	}
	snapshot, reason := opened(r, s, s.store.Snapshots, func(s *v1alpha1.Snapshot) []v1alpha1.AccessToken { return s.Spec.AccessTokens })
	return call{snapshot: snapshot}, reason
}

// snapshotWith is the snapshot of this node with a UID.
func (s *Server) snapshotWith(ctx context.Context, uid string) (*v1alpha1.Snapshot, string) {
	return lookUp(ctx, s, s.store.Snapshots, uid, whichever[*v1alpha1.Snapshot])
}

// sizeHeader of an answer with extents is the size of the content.
const sizeHeader = "Plinth-Content-Bytes"

// serveExtents answers with the extents of a snapshot that end behind the byte "from", since the snapshot with the UID "base" if one is
// named: pairs of 64-bit little-endian integers, offset and length.
func (s *Server) serveExtents(w http.ResponseWriter, r *http.Request) {
	bytes, list, err := s.extents(r)
	if err != nil {
		http.Error(w, err.Error(), httpStatus(err))
		return
	}
	from, _ := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64) // what is no number is the beginning
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set(sizeHeader, strconv.FormatInt(bytes, 10))
	out := bufio.NewWriterSize(w, 64<<10)
	for _, x := range list {
		if x.Offset+x.Bytes > from {
			_ = binary.Write(out, binary.LittleEndian, x)
		}
	}
	_ = out.Flush() // who does not get it asks again
}

func (s *Server) extents(r *http.Request) (int64, []Extent, error) {
	if s.options.Snapshots == nil {
		return 0, nil, backingimage.Errorf(backingimage.NotFound, "this node gives no snapshots")
	}
	var base *v1alpha1.Snapshot
	if uid := r.URL.Query().Get("base"); uid != "" {
		var reason string
		if base, reason = s.snapshotWith(r.Context(), uid); base == nil && reason == notAsked {
			return 0, nil, backingimage.Errorf(backingimage.NotReady, "the base snapshot cannot be looked up just now; try again")
		} else if base == nil {
			return 0, nil, backingimage.Errorf(backingimage.NotFound, "the base snapshot is not on this node")
		}
	}
	return s.options.Snapshots.Extents(r.Context(), callOf(r.Context()).snapshot, base)
}

// NewSnapshotClient makes a client of the agent at an address (host:port) whose public key has the hash, for the snapshot with a UID. It
// does not connect.
func NewSnapshotClient(address, publicKeyHash, uid string, t Token) *Client {
	return newClient(address, snapshots, uid, t, pinnedConfig(publicKeyHash))
}

// Extents calls use with the extents of the snapshot that end behind the byte from, since the snapshot with the UID base if that is not
// "". use is told the size of the content with each. NotFound; Precondition when base is on another disk; NotReady.
func (c *Client) Extents(ctx context.Context, base string, from int64, use func(contentBytes int64, x Extent) error) error {
	query := url.Values{"from": {strconv.FormatInt(from, 10)}}
	if base != "" {
		query.Set("base", base)
	}
	resp, err := c.do(ctx, http.MethodGet, c.path("extents")+"?"+query.Encode(), nil, nil)
	if err != nil {
		return fmt.Errorf("ask for extents: %w", err)
	}
	defer resp.Body.Close()
	bytes, err := strconv.ParseInt(resp.Header.Get(sizeHeader), 10, 64)
	if err != nil {
		return backingimage.Errorf(backingimage.Internal, "ask for extents: agent at %s does not say how large the snapshot is", c.address)
	}
	in := bufio.NewReaderSize(resp.Body, 64<<10)
	for {
		var x Extent
		err := binary.Read(in, binary.LittleEndian, &x)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.broken(ctx, err)
		}
		if err := use(bytes, x); err != nil {
			return err
		}
	}
}
