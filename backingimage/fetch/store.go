package fetch

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/disk/direct"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// contentFile is the file of a content that is being made: sparse, and each chunk's digest is taken on its way in. It is
// safe for concurrent use with different chunks.
type contentFile struct {
	file    *os.File
	direct  *direct.Writer // of the file; nil: through the page cache
	digests *manifest.Builder
	written atomic.Int64 // bytes
	growing bool         // the content's size is not known: see grow
	size    int64        // of a growing file

	// origin is the file that extents are in. Where the filesystem can, they are shared with it instead of written,
	// which costs neither time nor room.
	origin *os.File
	cannot atomic.Bool // the filesystem refused once
}

// newContentFile makes the file of a content of so many bytes, -1 where that is not known yet. It has its size from
// the start: filesystems that reserve room behind a growing file would otherwise fill the holes with it.
func newContentFile(path string, bytes int64, digests *manifest.Builder) (*contentFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make content: %w", err)
	}
	if bytes >= 0 {
		err = f.Truncate(bytes)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make content of %d bytes: %w", bytes, err)
	}
	return &contentFile{file: f, digests: digests, growing: bytes < 0}, nil
}

// growBytes is the step in which a file grows whose content's size is not known.
const growBytes = 1 << 30

// grow makes room for content up to end, and for much more: see newContentFile. Whoever finishes the content cuts it.
func (c *contentFile) grow(end int64) error {
	if !c.growing || end <= c.size {
		return nil
	}
	c.size = (end/growBytes + 1) * growBytes
	if err := c.file.Truncate(c.size); err != nil {
		return fmt.Errorf("make room for content up to byte %d: %w", end, err)
	}
	return nil
}

// holeBytes is the size and the alignment of the blocks that are left out of a file when they are zeros: small enough to
// find most of what is empty in an image, large enough that extents stay few.
const holeBytes = 64 << 10

// blockBytes is what a filesystem shares at least, and the alignment that it asks for.
const blockBytes = 4 << 10

// store puts a chunk into the file, where it has no data yet. Blocks of zeros are skipped.
func (c *contentFile) store(chunk format.Chunk) error {
	if c.digests.Add(chunk.Index, chunk.Data).IsZero() {
		return nil
	}
	return c.put(chunk)
}

// put is store of a chunk whose digest is known and that is not zero.
func (c *contentFile) put(chunk format.Chunk) error {
	rest, at := chunk.Data, chunk.Index*manifest.ChunkBytes
	for len(rest) > 0 {
		zeros := span(rest, true)
		rest, at = rest[zeros:], at+int64(zeros)
		data := span(rest, false)
		if err := c.place(rest[:data], at, chunk.Extents); err != nil {
			return err
		}
		rest, at = rest[data:], at+int64(data)
	}
	return nil
}

// span returns how many bytes at p's beginning are blocks of zeros, or blocks of anything else.
func span(p []byte, zero bool) int {
	n := 0
	for n < len(p) {
		end := min(n+holeBytes, len(p))
		if manifest.AllZero(p[n:end]) != zero {
			break
		}
		n = end
	}
	return n
}

// place puts data at an offset, shared where an extent has it and written elsewhere.
func (c *contentFile) place(data []byte, at int64, extents []format.Extent) error {
	for _, e := range extents {
		from := max(at, e.At)
		length := (min(at+int64(len(data)), e.At+e.Bytes) - from) / blockBytes * blockBytes
		if length < holeBytes {
			continue
		}
		if !c.share(from, e.Host+from-e.At, length) {
			continue
		}
		if err := c.write(data[:from-at], at); err != nil {
			return err
		}
		data, at = data[from+length-at:], from+length
	}
	return c.write(data, at)
}

// share makes part of the file one with part of the origin; false means that it has to be written.
func (c *contentFile) share(at, host, length int64) bool {
	if c.origin == nil || at%blockBytes != 0 || host%blockBytes != 0 || c.cannot.Load() {
		return false
	}
	err := cloneRange(int(c.file.Fd()), &unix.FileCloneRange{
		Src_fd: int64(c.origin.Fd()), Src_offset: uint64(host), Src_length: uint64(length), Dest_offset: uint64(at),
	})
	if err != nil {
		c.cannot.Store(true)
	}
	return err == nil
}

// cloneRange is replaced in tests.
var cloneRange = unix.IoctlFileCloneRange

func (c *contentFile) write(p []byte, at int64) error {
	if len(p) == 0 {
		return nil
	}
	if c.direct != nil {
		_, err := c.direct.WriteAt(p, at)
		return err
	}
	if _, err := c.file.WriteAt(p, at); err != nil {
		return err
	}
	if after := c.written.Add(int64(len(p))); after/flushBytes != (after-int64(len(p)))/flushBytes {
		beginFlush(c.file)
	}
	return nil
}

// flushBytes is how much is written before the disk is told to begin with it. It works while we compute, and the sync in
// the end finds little left to do.
const flushBytes = 32 << 20

// beginFlush makes the kernel start to write what is dirty, without waiting for it. It is a wish: the sync in the end is
// what counts.
func beginFlush(f *os.File) {
	_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
}
