package transfer

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
)

// holding is what this node has of an image, a finished copy or one that it is receiving from peers; or a snapshot.
type holding struct {
	record fetch.Record
	dir    string       // of a finished copy
	bad    []int64      // its chunks that are known to be damaged
	share  *fetch.Share // of the others
}

// holding finds it; a finished copy comes first, one without known damage before others. A copy whose damage cannot be told is
// none: nothing of it may be given. NotFound.
func (s *Server) holding(uid string) (holding, error) {
	var damaged holding
	for _, d := range s.disks.List() {
		found, err := finished(d.Layout().Image(uid))
		if err == nil && len(found.bad) == 0 {
			return found, nil
		}
		if err == nil && damaged.dir == "" {
			damaged = found
		}
	}
	if damaged.dir != "" {
		return damaged, nil
	}
	if s.options.Shares != nil {
		if share, ok := s.options.Shares.Get(uid); ok {
			return holding{record: share.Record, share: share}, nil
		}
	}
	return holding{}, backingimage.Errorf(backingimage.NotFound, "this node has no ready copy of the image; ask another")
}

// asked is what this node has of what a request is about.
func (s *Server) asked(ctx context.Context) (holding, error) {
	c := callOf(ctx)
	if c.snapshot == nil {
		return s.holding(string(c.image.UID))
	}
	if s.options.Snapshots == nil {
		return holding{}, backingimage.Errorf(backingimage.NotFound, "this node gives no snapshots")
	}
	share, err := s.options.Snapshots.Share(ctx, c.snapshot)
	if err != nil {
		return holding{}, err
	}
	return holding{record: share.Record, share: share}, nil
}

// finished is the finished copy in a directory.
func finished(dir string) (holding, error) {
	record, err := fetch.ReadRecord(dir)
	if err != nil {
		return holding{}, err
	}
	bad, err := fetch.Damage(dir)
	return holding{record: record, dir: dir, bad: bad}, err
}

// tag is the ETag of its content and of its manifest, which the content digest names.
func (h holding) tag() string { return `"` + h.record.ContentDigest + `"` }

// file is something to read, and to close.
type file interface {
	io.ReadSeeker
	io.Closer
}

// manifest opens the manifest's file form.
func (h holding) manifest() (file, error) {
	if h.share != nil {
		return inMemory{bytes.NewReader(h.share.Manifest.Encode())}, nil
	}
	return os.Open(filepath.Join(h.dir, disk.ManifestFile))
}

type inMemory struct{ *bytes.Reader }

// Close implements io.Closer.
func (inMemory) Close() error { return nil }

// data opens the content. Of a copy that is being received, only a range of whole chunks that are there can be had: else
// NotFound.
func (h holding) data(header string) (file, error) {
	if h.share == nil {
		return os.Open(filepath.Join(h.dir, disk.ImageFile))
	}
	first, end, ok := chunkRange(header, h.share.Manifest.Bytes())
	if !ok {
		return nil, backingimage.Errorf(backingimage.NotFound, "this node is still receiving the image, and gives nothing of it but ranges of whole chunks")
	}
	if !h.share.Has(first, end) {
		return nil, backingimage.Errorf(backingimage.NotFound, "this node does not have these chunks yet; ask it which it has")
	}
	return h.share.Open()
}

// chunks are those that are here and can be given.
func (h holding) chunks() manifest.Bitmap {
	if h.share != nil {
		return h.share.Chunks()
	}
	count := (h.record.VirtualBytes + manifest.ChunkBytes - 1) / manifest.ChunkBytes
	all := manifest.NewBitmap(count)
	for i := range count {
		if !slices.Contains(h.bad, i) {
			all.Set(i)
		}
	}
	return all
}

var rangePattern = regexp.MustCompile(`^bytes=(\d{1,18})-(\d{1,18})$`)

// chunkRange reads a Range header; false unless it is one range of whole chunks within so many bytes.
func chunkRange(header string, bytes int64) (first, end int64, ok bool) {
	m := rangePattern.FindStringSubmatch(header)
	if m == nil {
		return 0, 0, false
	}
	from, _ := strconv.ParseInt(m[1], 10, 64) // 18 digits fit
	last, _ := strconv.ParseInt(m[2], 10, 64)
	to := last + 1
	if from%manifest.ChunkBytes != 0 || from >= to || to > bytes || to != bytes && to%manifest.ChunkBytes != 0 {
		return 0, 0, false
	}
	return from / manifest.ChunkBytes, (to + manifest.ChunkBytes - 1) / manifest.ChunkBytes, true
}
