package transfer

import (
	"context"
	"encoding/json"
	"net/http"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// byEither admits a peer, and who has a token of the image. Who shows a certificate is judged by that.
func (s *Server) byEither(r *http.Request) (call, string) {
	if shown(r) == "" {
		return s.byToken(r)
	}
	return s.byKey(r)
}

// byKey admits a peer to an image. It may read every one.
func (s *Server) byKey(r *http.Request) (call, string) {
	return s.peerCall(r, func(ctx context.Context, uid string) (c call, reason string) {
		c.image, reason = lookUp(ctx, s, s.store.Images, uid, whichever[*v1alpha1.BackingImage])
		return c, reason
	})
}

// peerCall is the call of a peer, a client whose certificate has a key that is in the status of a StorageNode, about what find finds.
func (s *Server) peerCall(r *http.Request, find func(ctx context.Context, uid string) (call, string)) (call, string) {
	hash := shown(r)
	if hash == "" {
		return call{}, noPeer
	}
	name, reason := s.nodeWith(r.Context(), hash)
	if name == "" {
		return call{}, reason
	}
	c, reason := find(r.Context(), r.PathValue("uid"))
	c.peer = name
	return c, reason
}

// shown is the hash of the key that the client has proven to have; "" when it has shown none.
func shown(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	return keyHash(r.TLS.PeerCertificates[0])
}

// nodeWith is the name of the node that has a key. The API server is asked for what is not known yet, but not by everyone at any time.
func (s *Server) nodeWith(ctx context.Context, hash string) (name, reason string) {
	if known, err := s.store.AllNodes(ctx); err == nil {
		if name := withKey(known, hash); name != "" {
			return name, ""
		}
	}
	if !s.asking.TryAccept() {
		return "", notAsked
	}
	live, err := s.store.FreshNodes(ctx)
	if err != nil {
		if ctx.Err() == nil { // else whoever asked has gone
			klog.FromContext(ctx).Error(err, "Cannot look up a peer")
		}
		return "", notAsked
	}
	return withKey(live, hash), unknownKey
}

func withKey(nodes []*v1alpha1.StorageNode, hash string) string {
	for _, n := range nodes {
		if n.Status.PublicKeyHash == hash {
			return n.Name
		}
	}
	return ""
}

// serveRecord answers with what the copy is, in the form of its copy.json.
func (s *Server) serveRecord(w http.ResponseWriter, r *http.Request) {
	c, err := s.asked(r.Context())
	if err != nil {
		http.Error(w, err.Error(), httpStatus(err))
		return
	}
	text, err := json.Marshal(c.record)
	if err != nil {
		klog.FromContext(r.Context()).Error(err, "Cannot encode a record")
		http.Error(w, "the copy's record cannot be encoded", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text) // who does not get it asks again
}

// serveHave answers with a manifest.Bitmap of the chunks that are here. Those of zeros are everywhere.
func (s *Server) serveHave(w http.ResponseWriter, r *http.Request) {
	c, err := s.asked(r.Context())
	if err != nil {
		http.Error(w, err.Error(), httpStatus(err))
		return
	}
	w.Header().Set("ETag", c.tag())
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(c.chunks()) // who does not get it asks again
}
