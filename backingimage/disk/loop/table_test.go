package loop

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"
)

const diskSectors = 20480

// mbrSector returns a boot sector with the entries {type, first, count}.
func mbrSector(entries ...[3]uint32) []byte {
	s := make([]byte, 512)
	for i, e := range entries {
		s[446+16*i+4] = byte(e[0])
		binary.LittleEndian.PutUint32(s[446+16*i+8:], e[1])
		binary.LittleEndian.PutUint32(s[446+16*i+12:], e[2])
	}
	s[510], s[511] = 0x55, 0xaa
	return s
}

// put copies a sector to its place.
func put(disk []byte, sector, sectorBytes int, content []byte) {
	copy(disk[sector*sectorBytes:], content)
}

// gptDisk returns a disk with the partitions {first, last} at the entries 1, 3, 5, …
func gptDisk(sectorBytes int, parts ...[2]uint64) []byte {
	disk := make([]byte, diskSectors*sectorBytes)
	put(disk, 0, sectorBytes, mbrSector([3]uint32{protectiveType, 1, 0xffffffff}))
	header := make([]byte, 512)
	copy(header, "EFI PART")
	binary.LittleEndian.PutUint32(header[12:], 92)
	binary.LittleEndian.PutUint64(header[72:], 2)
	binary.LittleEndian.PutUint32(header[80:], 128)
	binary.LittleEndian.PutUint32(header[84:], 128)
	binary.LittleEndian.PutUint32(header[16:], crc32.ChecksumIEEE(header[:92]))
	put(disk, 1, sectorBytes, header)
	for i, p := range parts {
		e := disk[2*sectorBytes+2*i*128:]
		e[0] = 1
		binary.LittleEndian.PutUint64(e[32:], p[0])
		binary.LittleEndian.PutUint64(e[40:], p[1])
	}
	return disk
}

func TestReadTable(t *testing.T) {
	logical := make([]byte, diskSectors*512)
	put(logical, 0, 512, mbrSector([3]uint32{0x83, 2048, 2048}, [3]uint32{0x05, 4096, 8192}))
	put(logical, 4096, 512, mbrSector([3]uint32{0x83, 64, 1000}, [3]uint32{0x05, 2048, 2048}))
	put(logical, 6144, 512, mbrSector([3]uint32{0x83, 64, 2000}))

	loop := make([]byte, diskSectors*512) // a chain that leads back to its head
	put(loop, 0, 512, mbrSector([3]uint32{0x0f, 4096, 8192}))
	put(loop, 4096, 512, mbrSector([3]uint32{}, [3]uint32{0x05, 0, 8192}))

	outside := make([]byte, diskSectors*512)
	put(outside, 0, 512, mbrSector([3]uint32{0x83, diskSectors - 1, 2}, [3]uint32{0x83, 0xffffffff, 0xffffffff}, [3]uint32{0x83, 2048, 0}, [3]uint32{0x05, 0xfffffff0, 1}))

	damaged := gptDisk(512, [2]uint64{2048, 4095})
	damaged[512+40]++
	huge := gptDisk(512, [2]uint64{2048, 1 << 63}, [2]uint64{4095, 2048}, [2]uint64{1 << 63, 1<<63 + 5})

	for _, test := range []struct {
		name        string
		disk        []byte
		sectorBytes int
		want        []partition
	}{
		{"zeros", make([]byte, diskSectors*512), 512, nil},
		{"shorter than a table", make([]byte, 100), 512, nil},
		{"logical partitions", logical, 512, []partition{{1, 2048 * 512, 2048 * 512}, {5, 4160 * 512, 1000 * 512}, {6, 6208 * 512, 2000 * 512}}},
		{"a chain without an end", loop, 512, nil},
		{"partitions outside of the disk", outside, 512, nil},
		{"gpt", gptDisk(512, [2]uint64{2048, 4095}, [2]uint64{4096, 4096}), 512, []partition{{1, 2048 * 512, 2048 * 512}, {3, 4096 * 512, 512}}},
		{"gpt of sectors of 4096 bytes", gptDisk(4096, [2]uint64{256, 511}), 4096, []partition{{1, 256 * 4096, 256 * 4096}}},
		{"a gpt that is damaged", damaged, 512, nil},
		{"a gpt of absurd partitions", huge, 512, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := readTable(bytes.NewReader(test.disk), int64(len(test.disk)), test.sectorBytes)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %v (%v), want %v", got, err, test.want)
			}
		})
	}
}

func FuzzReadTable(f *testing.F) {
	f.Add(gptDisk(512, [2]uint64{2048, 4095})[:4096])
	f.Add(mbrSector([3]uint32{0x83, 1, 1}, [3]uint32{0x05, 1, 1}))
	f.Fuzz(func(t *testing.T, content []byte) {
		size := int64(len(content))
		found, err := readTable(bytes.NewReader(content), size, 512)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range found {
			if p.number < 1 || p.offset <= 0 || p.size <= 0 || p.offset+p.size > size {
				t.Fatalf("partition %+v of a disk of %d bytes", p, size)
			}
		}
	})
}
