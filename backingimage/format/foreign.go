package format

import (
	"bytes"
	"encoding/binary"

	"plinth.dev/plinth/backingimage"
)

// refuseForeign refuses, by the first bytes of another hypervisor's disk, one that needs another file. It sees the usual
// ways and spares their download; package foreign sees all of them.
func refuseForeign(name string, head []byte) error {
	if !(Info{Format: name}).Foreign() {
		return nil
	}
	if len(head) < FooterBytes {
		return backingimage.Errorf(backingimage.Corrupt, "the %s image is truncated: it has %d bytes; publish it anew", name, len(head))
	}
	switch {
	case name == VHD && binary.BigEndian.Uint32(head[60:]) == vhdDifferencing,
		name == VDI && binary.LittleEndian.Uint32(head[76:]) > vdiFixed,
		name == VMDK && head[0] == 'K' && binary.LittleEndian.Uint64(head[12:]) == 0: // the descriptor inside says where data is
		return AnotherFile(name)
	}
	return nil
}

// AnotherFile is the error of an image that is not all in one file. It does not say which other one: the name is the
// image's, and might be of a file that this machine has.
func AnotherFile(name string) error {
	return backingimage.Errorf(backingimage.Unsupported, "the %s image depends on another file (a parent, or an extent of its own); flatten it where that file is, with \"qemu-img convert -O qcow2\", and publish the result", name)
}

// Types of disks in the headers of VHD and VDI.
const (
	vhdFixed        = 2
	vhdDifferencing = 4
	vdiFixed        = 2 // 1 is dynamic; 3 and 4 have a parent
)

// FooterBytes is the size of a VHD's footer.
const FooterBytes = 512

// FixedVHD reports whether the last FooterBytes of a file are those of a VHD of fixed size, which is its content and a footer:
// nothing at its beginning tells it from a raw disk. The footer's checksum and its size must fit, so that a disk that
// merely mentions the mark is not cut.
func FixedVHD(footer []byte, fileBytes int64) bool {
	if len(footer) != FooterBytes || !bytes.HasPrefix(footer, []byte("conectix")) {
		return false
	}
	var sum uint32
	for i, b := range footer {
		if i < 64 || i >= 68 { // the checksum's own place
			sum += uint32(b)
		}
	}
	size := binary.BigEndian.Uint64(footer[48:])
	return ^sum == binary.BigEndian.Uint32(footer[64:]) && binary.BigEndian.Uint32(footer[60:]) == vhdFixed &&
		size > 0 && size%SectorBytes == 0 && size == uint64(fileBytes-FooterBytes)
}
