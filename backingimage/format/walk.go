package format

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"

	"plinth.dev/plinth/backingimage/manifest"
)

// Fields of table entries.
const (
	offsetMask     = 0x00fffffffffffe00 // bits 9 to 55
	compressedFlag = 1 << 62
	zeroFlag       = 1 << 0
)

// run is a piece of a chunk and where in the file it comes from: one compressed cluster, or clusters that follow each
// other both in the content and in the file.
type run struct {
	at         int64 // offset in the content, in bytes
	bytes      int64 // of content; a compressed cluster counts whole
	host       int64 // offset in the file
	hostBytes  int64
	compressed bool
}

// job is one chunk that is not all holes.
type job struct {
	index int64 // of the chunk
	runs  []run // in the order of the content
}

// walker goes through the tables in the order of the content.
type walker struct {
	file      io.ReaderAt
	fileBytes int64
	header    *header
	emit      func(job) error
	pending   job
	referred  int64 // bytes of the file that tables referred to so far
}

// walk gives every chunk with data to emit, in order.
func (w *walker) walk(ctx context.Context) error {
	if err := w.checkL2(); err != nil {
		return err
	}
	h := w.header
	l1 := bufio.NewReaderSize(io.NewSectionReader(w.file, h.l1Offset, h.l1Entries*8), 64<<10)
	table := make([]byte, h.clusterBytes())
	for i := range h.l1Entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		var word [8]byte
		if _, err := io.ReadFull(l1, word[:]); err != nil {
			return readFailed("the L1 table", h.l1Offset, err)
		}
		offset := binary.BigEndian.Uint64(word[:]) & offsetMask
		if offset == 0 {
			continue
		}
		if err := w.readTable(table, offset); err != nil {
			return err
		}
		if err := w.table(table, i*h.l2Entries()); err != nil {
			return err
		}
	}
	return w.flush()
}

func (w *walker) readTable(table []byte, offset uint64) error {
	if err := w.header.checkTable("an L2 table", offset, uint64(len(table)), w.fileBytes); err != nil {
		return err
	}
	if err := w.refer(int64(len(table))); err != nil {
		return err
	}
	if _, err := w.file.ReadAt(table, int64(offset)); err != nil {
		return readFailed("an L2 table", int64(offset), err)
	}
	return nil
}

// refer counts bytes of the file that are referred to. A file that uses more than it has uses some of it twice.
func (w *walker) refer(bytes int64) error {
	w.referred += bytes
	if w.referred > w.fileBytes {
		return corrupt("its tables refer to more data than it has, so clusters overlap")
	}
	return nil
}

// table goes through an L2 table whose first entry maps the given cluster of the content.
func (w *walker) table(table []byte, first int64) error {
	for i := range w.header.l2Entries() {
		at := (first + i) << w.header.clusterBits
		if at >= w.header.virtualBytes {
			return nil
		}
		entry := binary.BigEndian.Uint64(table[i*8:])
		r, data, err := w.cluster(entry, at)
		if err != nil {
			return err
		}
		if data {
			if err := w.add(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// cluster reads an L2 entry; data is false for what reads as zeros.
func (w *walker) cluster(entry uint64, at int64) (r run, data bool, err error) {
	if entry&compressedFlag != 0 {
		r, err = w.compressed(entry, at)
		return r, true, err
	}
	offset := entry & offsetMask
	if entry&zeroFlag != 0 {
		if w.header.version < 3 {
			return run{}, false, corrupt("it has a zero cluster, which version 2 does not know")
		}
		return run{}, false, nil
	}
	if offset == 0 {
		return run{}, false, nil
	}
	size := min(w.header.clusterBytes(), w.header.virtualBytes-at)
	if err := w.header.checkTable("a data cluster", offset, uint64(size), w.fileBytes); err != nil {
		return run{}, false, err
	}
	return run{at: at, bytes: size, host: int64(offset), hostBytes: size}, true, w.refer(size)
}

// compressed reads a descriptor of a compressed cluster: an offset to the byte, and the number of sectors of 512 bytes
// that hold its data, the first and the last perhaps in part.
func (w *walker) compressed(entry uint64, at int64) (run, error) {
	split := 62 - (w.header.clusterBits - 8)
	host := int64(entry & (1<<split - 1))
	sectors := int64(entry&(compressedFlag-1)>>split) + 1
	if host >= w.fileBytes || host < header2Bytes {
		return run{}, truncated("a compressed cluster", uint64(host), w.fileBytes)
	}
	bytes := min(sectors*512-host%512, w.fileBytes-host)
	r := run{at: at, bytes: w.header.clusterBytes(), host: host, hostBytes: bytes, compressed: true}
	return r, w.refer(max(bytes-511, 1)) // the last sector may be the next cluster's first
}

// add puts a run into its chunk, and into the run before where the two are one.
func (w *walker) add(r run) error {
	if index := r.at / manifest.ChunkBytes; index != w.pending.index {
		if err := w.flush(); err != nil {
			return err
		}
		w.pending.index = index
	}
	if n := len(w.pending.runs); n > 0 {
		last := &w.pending.runs[n-1]
		adjacent := last.at+last.bytes == r.at && last.host+last.hostBytes == r.host
		if adjacent && !last.compressed && !r.compressed {
			last.bytes += r.bytes
			last.hostBytes += r.hostBytes
			return nil
		}
	}
	w.pending.runs = append(w.pending.runs, r)
	return nil
}

func (w *walker) flush() error {
	if len(w.pending.runs) == 0 {
		return nil
	}
	full := w.pending
	w.pending = job{index: full.index}
	return w.emit(full)
}
