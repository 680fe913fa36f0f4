package format

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"plinth.dev/plinth/backingimage/manifest"
)

// QCOW2Writer writes a content as a qcow2 file: version 3, clusters of 64 KiB, no compression, nothing that a reader may not
// know. Its host clusters are the header and four regions: the data, and the tables that lead to it (refcount table and
// blocks, L1, L2). Into a file the data comes first, so that every cluster of zeros is left out; into a stream the tables
// come first, from which it follows that what they promise must be known before: whole chunks.
type QCOW2Writer struct {
	out   io.WriterAt
	bytes int64
	// data has the guest clusters that have a host cluster, in order; the k-th is k clusters behind the first.
	data    []int64
	stream  bool
	layout  qcow2Layout
	written int64 // clusters of data
	next    int64 // chunk, the least that may come
}

// Sizes of what is written.
const (
	writeBits      = 16
	writeCluster   = 1 << writeBits
	tableEntries   = writeCluster / 8 // of an L2 table, and of a cluster of the refcount table
	refcountBlock  = writeCluster / 2 // refcounts of 16 bits in a block
	chunkClusters  = manifest.ChunkBytes / writeCluster
	copied         = 1 << 63 // in an entry: the cluster is used once
	writtenVersion = 3
)

// sequential makes a stream of writes at offsets: what lies between them is zeros.
type sequential struct {
	w  io.Writer
	at int64
}

var zeros [writeCluster]byte

// WriteAt implements io.WriterAt for offsets that do not go back.
func (s *sequential) WriteAt(p []byte, offset int64) (int, error) {
	if offset < s.at {
		return 0, fmt.Errorf("write at %d behind %d: a stream does not go back", offset, s.at)
	}
	for s.at < offset {
		n, err := s.w.Write(zeros[:min(int64(len(zeros)), offset-s.at)])
		s.at += int64(n)
		if err != nil {
			return 0, err
		}
	}
	n, err := s.w.Write(p)
	s.at += int64(n)
	return n, err
}

// NewQCOW2File begins a qcow2 file of a content of so many bytes in an empty file.
func NewQCOW2File(f io.WriterAt, bytes int64) *QCOW2Writer {
	return &QCOW2Writer{out: f, bytes: bytes}
}

// NewQCOW2Stream begins a qcow2 file that is written in order. used says which chunks are not zeros: all of those, and no
// others, have to be added.
func NewQCOW2Stream(w io.Writer, bytes int64, used func(chunk int64) bool) (*QCOW2Writer, error) {
	q := &QCOW2Writer{out: &sequential{w: w}, bytes: bytes, stream: true}
	for chunk := int64(0); chunk*manifest.ChunkBytes < bytes; chunk++ {
		if !used(chunk) {
			continue
		}
		for c := chunk * chunkClusters; c < (chunk+1)*chunkClusters && c*writeCluster < bytes; c++ {
			q.data = append(q.data, c)
		}
	}
	q.layout = newQCOW2Layout(bytes, q.data, true)
	return q, q.writeTables()
}

// Add adds a chunk. Chunks come in order; those that never come are zeros.
func (q *QCOW2Writer) Add(chunk Chunk) error {
	if chunk.Index < q.next {
		return errors.New("write qcow2: chunks come in order")
	}
	q.next = chunk.Index + 1
	for at := 0; at < len(chunk.Data); at += writeCluster {
		cluster := chunk.Data[at:min(at+writeCluster, len(chunk.Data))]
		if !q.stream {
			if manifest.AllZero(cluster) {
				continue
			}
			q.data = append(q.data, chunk.Index*chunkClusters+int64(at)/writeCluster)
		}
		if err := q.put(cluster); err != nil {
			return fmt.Errorf("write qcow2: %w", err)
		}
	}
	return nil
}

// put writes the next cluster of data.
func (q *QCOW2Writer) put(cluster []byte) error {
	first := int64(1) // behind the header
	if q.stream {
		first = q.layout.data
	}
	_, err := q.out.WriteAt(cluster, (first+q.written)*writeCluster)
	q.written++
	return err
}

// Close writes what is left. It does not close what is written to.
func (q *QCOW2Writer) Close() error {
	if q.stream {
		return q.pad()
	}
	q.layout = newQCOW2Layout(q.bytes, q.data, false)
	if err := q.pad(); err != nil {
		return err
	}
	return q.writeTables()
}

// pad makes the last cluster of data whole.
func (q *QCOW2Writer) pad() error {
	if q.written != int64(len(q.data)) {
		return fmt.Errorf("write qcow2: %d clusters were announced and %d came", len(q.data), q.written)
	}
	if rest := q.bytes % writeCluster; rest != 0 && q.written > 0 && q.data[q.written-1] == q.bytes/writeCluster {
		if _, err := q.out.WriteAt(zeros[rest:], (q.layout.data+q.written-1)*writeCluster+rest); err != nil {
			return fmt.Errorf("write qcow2: %w", err)
		}
	}
	return nil
}

// qcow2Layout says where the regions are and how long, in clusters.
type qcow2Layout struct {
	data, refcountTable, refcountBlocks, l1, l2             int64 // where each begins
	tableClusters, blockClusters, l1Clusters, l2Tables, all int64
	l1Entries                                               int64
}

// newQCOW2Layout places the regions. The refcounts count their own clusters too, so that their number is found by trying.
func newQCOW2Layout(bytes int64, data []int64, tablesFirst bool) qcow2Layout {
	l := qcow2Layout{l1Entries: ceil(ceil(bytes, writeCluster), tableEntries)}
	l.l1Clusters = ceil(l.l1Entries, tableEntries)
	last := int64(-1)
	for _, c := range data {
		if c/tableEntries != last {
			last = c / tableEntries
			l.l2Tables++
		}
	}
	for l.blockClusters = 1; ; l.blockClusters++ {
		l.tableClusters = ceil(l.blockClusters, tableEntries)
		l.all = 1 + int64(len(data)) + l.tableClusters + l.blockClusters + l.l1Clusters + l.l2Tables
		if l.blockClusters*refcountBlock >= l.all {
			break
		}
	}
	l.refcountTable = 1
	if !tablesFirst {
		l.data, l.refcountTable = 1, 1+int64(len(data))
	}
	l.refcountBlocks = l.refcountTable + l.tableClusters
	l.l1 = l.refcountBlocks + l.blockClusters
	l.l2 = l.l1 + l.l1Clusters
	if tablesFirst {
		l.data = l.l2 + l.l2Tables
	}
	return l
}

func ceil(n, by int64) int64 { return (n + by - 1) / by }

// writeTables writes everything but the data, in the order of the file; a file's header comes last, so that one which was
// not finished is not taken for whole.
func (q *QCOW2Writer) writeTables() error {
	steps := []func() error{q.writeHeader, q.writeRefcounts, q.writeL1, q.writeL2}
	if !q.stream {
		steps = []func() error{q.writeRefcounts, q.writeL1, q.writeL2, q.writeHeader}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("write qcow2: %w", err)
		}
	}
	return nil
}

// writeHeader writes the header's cluster, as docs/interop/qcow2.txt of QEMU has it.
func (q *QCOW2Writer) writeHeader() error {
	h := make([]byte, writeCluster)
	copy(h, qcowMagic)
	be := binary.BigEndian
	be.PutUint32(h[4:], writtenVersion)
	be.PutUint32(h[20:], writeBits)
	be.PutUint64(h[24:], uint64(q.bytes))
	be.PutUint32(h[36:], uint32(q.layout.l1Entries))
	be.PutUint64(h[40:], uint64(q.layout.l1*writeCluster))
	be.PutUint64(h[48:], uint64(q.layout.refcountTable*writeCluster))
	be.PutUint32(h[56:], uint32(q.layout.tableClusters))
	be.PutUint32(h[96:], 4) // refcounts of 2^4 bits
	be.PutUint32(h[100:], header3Bytes)
	_, err := q.out.WriteAt(h, 0)
	return err
}

// writeRefcounts writes the table and the blocks: every cluster of the file is used once.
func (q *QCOW2Writer) writeRefcounts() error {
	table := make([]byte, q.layout.tableClusters*writeCluster)
	for i := range q.layout.blockClusters {
		binary.BigEndian.PutUint64(table[i*8:], uint64((q.layout.refcountBlocks+i)*writeCluster))
	}
	if _, err := q.out.WriteAt(table, q.layout.refcountTable*writeCluster); err != nil {
		return err
	}
	block := make([]byte, writeCluster)
	for i := range q.layout.blockClusters {
		clear(block)
		for j := range min(refcountBlock, q.layout.all-i*refcountBlock) {
			block[j*2+1] = 1
		}
		if _, err := q.out.WriteAt(block, (q.layout.refcountBlocks+i)*writeCluster); err != nil {
			return err
		}
	}
	return nil
}

// writeL1 writes the table of those L2 tables that have an entry.
func (q *QCOW2Writer) writeL1() error {
	table := make([]byte, q.layout.l1Clusters*writeCluster)
	last, tables := int64(-1), q.layout.l2
	for _, c := range q.data {
		if c/tableEntries == last {
			continue
		}
		last = c / tableEntries
		binary.BigEndian.PutUint64(table[last*8:], copied|uint64(tables*writeCluster))
		tables++
	}
	_, err := q.out.WriteAt(table, q.layout.l1*writeCluster)
	return err
}

// writeL2 writes the L2 tables, one after another.
func (q *QCOW2Writer) writeL2() error {
	table, at := make([]byte, writeCluster), q.layout.l2
	for i, c := range q.data {
		binary.BigEndian.PutUint64(table[c%tableEntries*8:], copied|uint64((q.layout.data+int64(i))*writeCluster))
		if i+1 < len(q.data) && q.data[i+1]/tableEntries == c/tableEntries {
			continue
		}
		if _, err := q.out.WriteAt(table, at*writeCluster); err != nil {
			return err
		}
		clear(table)
		at++
	}
	return nil
}
