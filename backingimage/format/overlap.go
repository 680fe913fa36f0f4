package format

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"io"
	"slices"
)

// area is where the file keeps metadata.
type area struct {
	what   string
	offset int64
	bytes  int64
}

// checkOverlap refuses areas that share bytes. It sorts the list.
func checkOverlap(areas []area) error {
	slices.SortFunc(areas, func(a, b area) int { return cmp.Compare(a.offset, b.offset) })
	for i := 1; i < len(areas); i++ {
		if last, next := areas[i-1], areas[i]; next.offset < last.offset+last.bytes {
			return corrupt("%s at offset %d overlaps %s at offset %d", next.what, next.offset, last.what, last.offset)
		}
	}
	return nil
}

// checkL2 refuses L2 tables that overlap other metadata, or that the L1 table names twice. A table that stood for two parts
// of the content would be no fault of arithmetic, but no writer makes one.
func (w *walker) checkL2() error {
	h := w.header
	l1 := bufio.NewReaderSize(io.NewSectionReader(w.file, h.l1Offset, h.l1Entries*8), 64<<10)
	var tables []int64
	for range h.l1Entries {
		var word [8]byte
		if _, err := io.ReadFull(l1, word[:]); err != nil {
			return readFailed("the L1 table", h.l1Offset, err)
		}
		if offset := binary.BigEndian.Uint64(word[:]) & offsetMask; offset != 0 && offset%uint64(h.clusterBytes()) == 0 { // readTable refuses others
			tables = append(tables, int64(offset))
		}
	}
	slices.Sort(tables)
	for i, offset := range tables {
		if i > 0 && offset < tables[i-1]+h.clusterBytes() {
			return corrupt("its L1 table names the L2 table at offset %d twice", offset)
		}
		for _, m := range h.metadata {
			if offset < m.offset+m.bytes && m.offset < offset+h.clusterBytes() {
				return corrupt("an L2 table at offset %d overlaps %s at offset %d", offset, m.what, m.offset)
			}
		}
	}
	return nil
}
