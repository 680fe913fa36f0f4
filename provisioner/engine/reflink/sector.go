package reflink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk/loop"
)

// Sectors that a device can have, in bytes. XFS takes direct I/O to a file that shares extents, as every clone does,
// only in whole blocks of 4096: with sectors of 512 the device of a clone is buffered.
const (
	smallSector = 512
	largeSector = 4096
)

// sectorBytes chooses the logical sector of a volume's device where the caller leaves it to us: 4096 where only that
// gives direct I/O and the content is a filesystem that does not mind, else 512, in which partition tables and boot
// sectors count. A device that exists keeps its own.
func sectorBytes(path string) (int, error) {
	d, attached, err := loop.Find(path)
	if backingimage.Is(err, backingimage.NotFound) {
		return smallSector, nil // Attach says so
	}
	if err != nil {
		return 0, err
	}
	if attached {
		return d.SectorBytes, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("choose sector: %w", err)
	}
	defer f.Close()
	var stat unix.Statx_t
	if err := statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN|unix.STATX_SIZE, &stat); err != nil {
		return smallSector, nil // a kernel that cannot tell
	}
	if stat.Mask&unix.STATX_DIOALIGN == 0 || stat.Dio_offset_align <= smallSector || stat.Size%largeSector != 0 {
		return smallSector, nil
	}
	head := make([]byte, largeSector)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("choose sector of %s: %w", path, err)
	}
	if bearsLargeSectors(head) {
		return largeSector, nil
	}
	return smallSector, nil
}

var statx = unix.Statx // replaced in tests

// bearsLargeSectors reports whether a content, by its first 4096 bytes, is a filesystem on the whole device whose own
// unit is at least that: an ext4 with such blocks and nothing to boot before it, or an XFS with such sectors. The
// offsets are those of the kernel's documentation.
func bearsLargeSectors(head []byte) bool {
	const ext4 = 1024
	if binary.LittleEndian.Uint16(head[ext4+0x38:]) == 0xef53 {
		return binary.LittleEndian.Uint32(head[ext4+0x18:]) >= 2 && allZero(head[:ext4])
	}
	return string(head[:4]) == "XFSB" && binary.BigEndian.Uint16(head[102:]) >= largeSector
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
