package format

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/parallel"
)

// File is an opened qcow2 file.
type File struct {
	reader    io.ReaderAt
	fileBytes int64
	header    *header
}

// Open checks the header of a qcow2 file of fileBytes. Errors are those of Probe.
func Open(reader io.ReaderAt, fileBytes int64, limits Limits) (*File, error) {
	head := make([]byte, min(HeadBytes, fileBytes))
	if _, err := reader.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, readFailed("the header", 0, err)
	}
	if !isQCOW2(head) {
		return nil, corrupt("it does not begin as one")
	}
	h, err := parseHeader(head, fileBytes, limits)
	if err != nil {
		return nil, err
	}
	return &File{reader: reader, fileBytes: fileBytes, header: h}, nil
}

// VirtualBytes is the size of the content, a multiple of SectorBytes.
func (f *File) VirtualBytes() int64 { return Padded(f.header.virtualBytes) }

// Chunk is one chunk of the content.
type Chunk struct {
	Index   int64
	Data    []byte
	Extents []Extent // where the file holds parts of Data as they are, in order
}

// Extent is content that stands in the file as it is, so that a filesystem may share it instead of copying it.
type Extent struct {
	At    int64 // offset in the content, in bytes
	Bytes int64
	Host  int64 // offset in the file
}

// maxWorkers bounds memory: each holds a chunk and the compressed data of one.
const maxWorkers = 4

// Convert gives the content to put, chunk by chunk; a chunk is put's until it returns. Chunks that are holes are left
// out; others may still be zeros. put is called from several goroutines, for each chunk at most once, in no order. A
// damaged or truncated file is Corrupt.
func (f *File) Convert(ctx context.Context, put func(Chunk) error) error {
	group, ctx := parallel.WithContext(ctx)
	workers := min(runtime.GOMAXPROCS(0), maxWorkers)
	jobs := make(chan job, workers)
	group.Go(func() error {
		defer close(jobs)
		w := &walker{file: f.reader, fileBytes: f.fileBytes, header: f.header, emit: func(j job) error {
			select {
			case jobs <- j:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		return w.walk(ctx)
	})
	for range workers {
		group.Go(func() error { return newWorker(f).work(ctx, jobs, put) })
	}
	return group.Wait()
}

// worker turns jobs into chunks.
type worker struct {
	source  *File
	chunk   []byte
	extents []Extent
	input   []byte // compressed data; made when there is any
	inflater
}

func newWorker(f *File) *worker {
	return &worker{source: f, chunk: make([]byte, manifest.ChunkBytes)}
}

func (w *worker) work(ctx context.Context, jobs <-chan job, put func(Chunk) error) error {
	for j := range jobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.fill(j); err != nil {
			return err
		}
		length := min(manifest.ChunkBytes, w.source.VirtualBytes()-j.index*manifest.ChunkBytes)
		if err := put(Chunk{Index: j.index, Data: w.chunk[:length], Extents: w.extents}); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the chunk's bytes.
func (w *worker) fill(j job) error {
	start, filled := j.index*manifest.ChunkBytes, int64(0)
	w.extents = w.extents[:0]
	for runs := j.runs; len(runs) > 0; {
		n := 1
		first := runs[0].at - start
		clear(w.chunk[filled:first])
		if runs[0].compressed {
			n = w.batch(runs)
			if err := w.inflateRuns(runs[:n], start); err != nil {
				return err
			}
		} else if err := w.readRun(runs[0], start); err != nil {
			return err
		}
		last := runs[n-1]
		filled = last.at + last.bytes - start
		runs = runs[n:]
	}
	end := max(min(filled, w.source.header.virtualBytes-start), 0)
	clear(w.chunk[end:])
	return nil
}

func (w *worker) readRun(r run, start int64) error {
	w.extents = append(w.extents, Extent{At: r.at, Bytes: r.bytes, Host: r.host})
	return w.read(w.chunk[r.at-start:r.at-start+r.bytes], r.host)
}

// batch returns how many compressed clusters, beginning with the first of runs, follow each other in content and lie
// in the file so close together that one read fetches them all.
func (w *worker) batch(runs []run) int {
	if w.input == nil {
		w.input = make([]byte, max(2*w.source.header.clusterBytes(), manifest.ChunkBytes))
	}
	n := 1
	for ; n < len(runs); n++ {
		last, next := runs[n-1], runs[n]
		inOrder := next.compressed && next.at == last.at+last.bytes && next.host >= last.host
		if !inOrder || next.host+next.hostBytes-runs[0].host > int64(len(w.input)) {
			break
		}
	}
	return n
}

// inflateRuns reads a batch of compressed clusters at once and decompresses each into its place.
func (w *worker) inflateRuns(runs []run, start int64) error {
	host, end := runs[0].host, int64(0)
	for _, r := range runs {
		end = max(end, r.host+r.hostBytes)
	}
	input := w.input[:end-host]
	if err := w.read(input, host); err != nil {
		return err
	}
	for _, r := range runs {
		from, to := input[r.host-host:r.host-host+r.hostBytes], w.chunk[r.at-start:r.at-start+r.bytes]
		if err := w.inflate(w.source.header.compression, to, from); err != nil {
			return corrupt("the compressed cluster at offset %d cannot be decompressed (%v)", r.host, err)
		}
	}
	return nil
}

func (w *worker) read(p []byte, offset int64) error {
	if _, err := w.source.reader.ReadAt(p, offset); err != nil {
		return readFailed("data", offset, err)
	}
	return nil
}

// readFailed is a fault of the disk that holds the file, or of the file's size: what lies within it was checked.
func readFailed(what string, offset int64, err error) error {
	return fmt.Errorf("read %s of the qcow2 file at offset %d: %w", what, offset, err)
}
