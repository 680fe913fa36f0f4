package loop

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// A partition table says where the partitions of a disk are. The kernel reads it when it was built with parsers for it; kernels of
// small virtual machines often were not, and then we read it and tell the kernel. Two kinds matter for images: GPT
// (UEFI specification, chapter 5) and MBR with its chain of logical partitions. What a table says is not trusted: a
// partition outside of the disk is left out, chains and entry counts are bounded.

// partition of a disk.
type partition struct {
	number       int
	offset, size int64 // in bytes
}

// Bounds of what is read from a table.
const (
	maxEntries = 256 // the kernel's own limit for a disk
	maxLogical = 64
)

// readTable returns the partitions of a disk of that many bytes; none when it has no table, or a damaged one.
func readTable(disk io.ReaderAt, size int64, sectorBytes int) ([]partition, error) {
	t := table{disk: disk, size: size, sector: int64(sectorBytes)}
	mbr, err := t.read(0, 512)
	if err != nil || mbr == nil || !signed(mbr) {
		return nil, err
	}
	if mbr[446+4] == protectiveType {
		return t.gpt()
	}
	return t.mbr(mbr)
}

type table struct {
	disk   io.ReaderAt
	size   int64
	sector int64
}

// read returns bytes of the disk, or nil when it ends before them.
func (t table) read(offset int64, n int) ([]byte, error) {
	if offset < 0 || offset > t.size-int64(n) {
		return nil, nil
	}
	p := make([]byte, n)
	if _, err := t.disk.ReadAt(p, offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return p, nil
}

// add appends the partition of those sectors if the disk has them.
func (t table) add(to []partition, number int, first, count uint64) []partition {
	sectors := uint64(t.size / t.sector)
	if count == 0 || first == 0 || first >= sectors || count > sectors-first || len(to) >= maxEntries {
		return to
	}
	return append(to, partition{number: number, offset: int64(first) * t.sector, size: int64(count) * t.sector})
}

// Partition types of an MBR that are no partitions.
const protectiveType = 0xee // the disk has a GPT

// extended reports whether the type's entry is the head of a chain of logical partitions.
func extended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

func signed(sector []byte) bool { return sector[510] == 0x55 && sector[511] == 0xaa }

// entry returns the i-th of the four entries of an MBR.
func entry(sector []byte, i int) (kind byte, first, count uint64) {
	e := sector[446+16*i:]
	return e[4], uint64(binary.LittleEndian.Uint32(e[8:])), uint64(binary.LittleEndian.Uint32(e[12:]))
}

func (t table) mbr(sector []byte) (found []partition, err error) {
	logical := 5
	for i := range 4 {
		kind, first, count := entry(sector, i)
		switch {
		case kind == 0:
		case extended(kind):
			if found, logical, err = t.chain(found, logical, first); err != nil {
				return nil, err
			}
		default:
			found = t.add(found, i+1, first, count)
		}
	}
	return found, nil
}

// chain follows the logical partitions: each link has an entry relative to itself and the next link relative to the chain's head.
func (t table) chain(found []partition, number int, head uint64) ([]partition, int, error) {
	link := head
	for range maxLogical {
		sector, err := t.read(int64(link)*t.sector, 512)
		if err != nil || sector == nil || !signed(sector) {
			return found, number, err
		}
		if kind, first, count := entry(sector, 0); kind != 0 && !extended(kind) {
			found = t.add(found, number, link+first, count)
			number++
		}
		kind, next, _ := entry(sector, 1)
		if !extended(kind) {
			break
		}
		link = head + next
	}
	return found, number, nil
}

func (t table) gpt() (found []partition, err error) {
	header, err := t.read(t.sector, 512)
	if err != nil || header == nil || !bytes.HasPrefix(header, []byte("EFI PART")) {
		return nil, err
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(header[at:]) }
	length, sum := u32(12), u32(16)
	if length < 92 || length > 512 {
		return nil, nil
	}
	clear(header[16:20]) // the sum is over the header with its own field zero
	if crc32.ChecksumIEEE(header[:length]) != sum {
		return nil, nil
	}
	start, count, each := binary.LittleEndian.Uint64(header[72:]), u32(80), u32(84)
	if each < 128 || each > 4096 || start > uint64(t.size/t.sector) {
		return nil, nil
	}
	for i := range min(count, maxEntries) {
		e, err := t.read(int64(start)*t.sector+int64(i)*int64(each), 128)
		if err != nil || e == nil {
			return found, err
		}
		if bytes.Equal(e[:16], make([]byte, 16)) { // unused
			continue
		}
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if last >= first {
			found = t.add(found, int(i)+1, first, last-first+1)
		}
	}
	return found, nil
}
