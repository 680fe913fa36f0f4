package transfer

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
)

// serveManifest answers with the manifest of a copy, in the form that manifest.Parse reads.
func (s *Server) serveManifest(w http.ResponseWriter, r *http.Request) {
	s.serveFile(w, r, func(h holding) (file, error) { return h.manifest() })
}

// choiceHeader of a request for data is set when the peer could as well take other chunks.
const choiceHeader = "Plinth-Choice"

// serveData answers with the content of a copy, or with ranges of it.
func (s *Server) serveData(w http.ResponseWriter, r *http.Request) {
	s.serveFile(w, r, func(h holding) (file, error) {
		if err := h.intact(r.Header.Get("Range")); err != nil {
			return nil, err
		}
		if peer := callOf(r.Context()).peer; peer != "" && h.share == nil {
			first, end, ok := chunkRange(r.Header.Get("Range"), h.record.VirtualBytes)
			if ok && !s.given.give(h.record.ImageUID, peer, first, end, r.Header.Get(choiceHeader) != "") {
				return nil, backingimage.Errorf(backingimage.Busy, "another node has just been given these chunks and gives them on; ask for others")
			}
		}
		return h.data(r.Header.Get("Range"))
	})
}

// serveFile serves a file of a copy. Its ETag is the content digest, which names both content and manifest.
func (s *Server) serveFile(rw http.ResponseWriter, r *http.Request, open func(holding) (file, error)) {
	h, err := s.asked(r.Context())
	var f file
	if err == nil {
		f, err = open(h)
	}
	switch backingimage.KindOf(err) {
	case backingimage.NotFound, backingimage.Busy, backingimage.Conflict, backingimage.NotReady:
		http.Error(rw, err.Error(), httpStatus(err))
		return
	}
	if err != nil {
		klog.FromContext(r.Context()).Error(err, "Cannot serve a copy")
		http.Error(rw, "the copy cannot be read", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	rw.Header().Set("ETag", h.tag())
	rw.Header().Set("Content-Type", "application/octet-stream")
	leave := s.lane.enter(r.Context())
	defer leave()
	http.ServeContent(&served{rw, r.Context(), s}, r, "", time.Time{}, f)
}

// served counts what is given, and keeps to the rate.
type served struct {
	http.ResponseWriter
	ctx    context.Context
	server *Server
}

// Unwrap is how http.ResponseController finds what is below.
func (s *served) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// Write implements http.ResponseWriter.
func (s *served) Write(p []byte) (int, error) {
	if err := s.server.lane.wait(s.ctx, len(p)); err != nil {
		return 0, err
	}
	n, err := s.ResponseWriter.Write(p)
	s.server.options.Metrics.served.Add(float64(n))
	if callOf(s.ctx).peer != "" {
		s.server.options.Metrics.toPeers.Add(float64(n))
	}
	return n, err
}

// pieces are the buffers through which contents go out.
var pieces = sync.Pool{New: func() any { p := make([]byte, burst); return &p }}

// ReadFrom implements io.ReaderFrom: larger pieces than io.Copy's cost fewer calls.
func (s *served) ReadFrom(from io.Reader) (int64, error) {
	buffer := pieces.Get().(*[]byte)
	defer pieces.Put(buffer)
	return io.CopyBuffer(struct{ io.Writer }{s}, from, *buffer)
}
