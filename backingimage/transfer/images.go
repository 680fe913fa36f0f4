package transfer

import (
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
)

// serveManifest answers with the manifest of a ready copy, in the form that manifest.Parse reads.
func (s *Server) serveManifest(w http.ResponseWriter, r *http.Request) {
	s.serveFile(w, r, disk.ManifestFile)
}

// serveData answers with the content of a ready copy, or with ranges of it.
func (s *Server) serveData(w http.ResponseWriter, r *http.Request) {
	s.serveFile(w, r, disk.ImageFile)
}

// serveFile serves a file of a ready copy. Its ETag is the content digest, which names both content and manifest.
func (s *Server) serveFile(rw http.ResponseWriter, r *http.Request, name string) {
	dir, record, err := s.readyCopy(string(imageOf(r.Context()).UID))
	if err != nil {
		http.Error(rw, err.Error(), httpStatus(err))
		return
	}
	if name == disk.ImageFile {
		err = intact(r, dir, record.VirtualBytes)
	}
	if err != nil {
		http.Error(rw, err.Error(), httpStatus(err))
		return
	}
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		klog.FromContext(r.Context()).Error(err, "Cannot serve a copy")
		http.Error(rw, "the copy cannot be read", http.StatusInternalServerError)
		return
	}
	defer f.Close()
	rw.Header().Set("ETag", `"`+record.ContentDigest+`"`)
	rw.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&served{rw, s.options.Metrics}, r, "", time.Time{}, f)
}

// served counts what was given.
type served struct {
	http.ResponseWriter
	metrics *Metrics
}

// Unwrap is how http.ResponseController finds what is below.
func (s *served) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// Write implements http.ResponseWriter.
func (s *served) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p)
	s.metrics.served.Add(float64(n))
	return n, err
}

// readyCopy finds a finished copy of an image on this node's disks, one without known damage if there is one. NotFound.
func (s *Server) readyCopy(uid string) (dir string, record fetch.Record, err error) {
	for _, d := range s.disks {
		here := d.Layout().Image(uid)
		found, err := fetch.ReadRecord(here)
		if err != nil {
			continue
		}
		dir, record = here, found
		if bad, err := fetch.Damage(here); err == nil && len(bad) == 0 {
			break
		}
	}
	if dir != "" {
		return dir, record, nil
	}
	return "", fetch.Record{}, backingimage.Errorf(backingimage.NotFound, "this node has no ready copy of the image; ask another")
}
