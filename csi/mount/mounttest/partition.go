package mounttest

import (
	"encoding/binary"
	"testing"
)

// Partition is an entry of an MBR: where it begins and how long it is, in sectors of 512 bytes.
type Partition struct{ Start, Sectors uint32 }

// MustPartition writes an MBR with up to four Linux partitions.
func MustPartition(tb testing.TB, path string, parts ...Partition) {
	tb.Helper()
	mbr := make([]byte, 512)
	for i, p := range parts {
		entry := mbr[446+16*i:]
		entry[4] = 0x83 // Linux
		binary.LittleEndian.PutUint32(entry[8:], p.Start)
		binary.LittleEndian.PutUint32(entry[12:], p.Sectors)
	}
	mbr[510], mbr[511] = 0x55, 0xaa
	MustWriteAt(tb, path, 0, mbr)
}
