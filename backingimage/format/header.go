package format

import (
	"encoding/binary"
	"math/bits"
	"strings"

	"plinth.dev/plinth/backingimage"
)

const qcowMagic = "QFI\xfb"

func isQCOW2(head []byte) bool { return strings.HasPrefix(string(head[:min(4, len(head))]), qcowMagic) }

// Sizes of the header: version 2's, and the least of version 3's.
const (
	header2Bytes = 72
	header3Bytes = 104
)

// Bits of incompatible_features.
const (
	dirty        = 1 << 0 // reference counts may be wrong; reading does not use them
	damaged      = 1 << 1
	externalData = 1 << 2
	compression  = 1 << 3
	extendedL2   = 1 << 4
	knownBits    = dirty | damaged | externalData | compression | extendedL2
)

// Ways in which clusters are compressed.
const (
	compressZlib = 0
	compressZstd = 1
)

// maxL1Bytes bounds the L1 table, as QEMU does.
const maxL1Bytes = 32 << 20

// header is what the conversion needs of a qcow2 header, checked.
type header struct {
	version      uint32
	clusterBits  uint32
	virtualBytes int64 // not padded
	l1Offset     int64
	l1Entries    int64 // as many as the virtual size needs; the table may be longer
	compression  uint8
	snapshots    uint32
	metadata     []area // header, L1 table, refcount table
}

func (h *header) clusterBytes() int64 { return 1 << h.clusterBits }

// l2Entries is how many clusters one L2 table maps: it fills a cluster with entries of 8 bytes.
func (h *header) l2Entries() int64 { return 1 << (h.clusterBits - 3) }

// parseHeader checks a qcow2 header. fileBytes is the size of the file, -1 when it is not known.
func parseHeader(head []byte, fileBytes int64, limits Limits) (*header, error) {
	if len(head) < header2Bytes {
		return nil, truncated("the header", 0, int64(len(head)))
	}
	version := binary.BigEndian.Uint32(head[4:])
	if version != 2 && version != 3 {
		return nil, backingimage.Errorf(backingimage.Unsupported, "the image is qcow version %d; versions 2 and 3 are supported: %s", version, convert)
	}
	if binary.BigEndian.Uint64(head[8:]) != 0 || binary.BigEndian.Uint32(head[16:]) != 0 {
		return nil, backingimage.Errorf(backingimage.Unsupported, "the qcow2 image depends on a backing file; flatten it with \"qemu-img convert -O qcow2\" where its backing file is, and publish the result")
	}
	if method := binary.BigEndian.Uint32(head[32:]); method != 0 {
		return nil, backingimage.Errorf(backingimage.Unsupported, "the qcow2 image is encrypted (method %d); decrypt it with \"qemu-img convert\" and publish the result", method)
	}
	h := &header{version: version, snapshots: binary.BigEndian.Uint32(head[60:])}
	if version == 3 {
		if err := h.parseVersion3(head); err != nil {
			return nil, err
		}
	}
	return h, h.parseGeometry(head, fileBytes, limits)
}

// parseVersion3 checks the fields that only version 3 has.
func (h *header) parseVersion3(head []byte) error {
	if len(head) < header3Bytes {
		return truncated("the header", 0, int64(len(head)))
	}
	length := binary.BigEndian.Uint32(head[100:])
	if length < header3Bytes || length%8 != 0 || length > HeadBytes {
		return corrupt("its header says that it is %d bytes long", length)
	}
	if order := binary.BigEndian.Uint32(head[96:]); order > 6 {
		return corrupt("its reference counts have 2^%d bits", order)
	}
	features := binary.BigEndian.Uint64(head[72:])
	if err := checkFeatures(features); err != nil {
		return err
	}
	if length > header3Bytes && len(head) > header3Bytes {
		h.compression = head[header3Bytes]
	}
	switch {
	case h.compression > compressZstd:
		return backingimage.Errorf(backingimage.Unsupported, "the qcow2 image is compressed in a way that is not known (type %d); %s", h.compression, convert)
	case (h.compression != compressZlib) != (features&compression != 0):
		return corrupt("its header contradicts itself about compression")
	}
	return nil
}

func checkFeatures(features uint64) error {
	switch {
	case features&externalData != 0:
		return backingimage.Errorf(backingimage.Unsupported, "the qcow2 image keeps its data in another file; flatten it with \"qemu-img convert -O qcow2\" where that file is, and publish the result")
	case features&damaged != 0:
		return corrupt("it is marked as corrupt")
	case features&extendedL2 != 0:
		return backingimage.Errorf(backingimage.Unsupported, "the qcow2 image has extended L2 entries (subclusters), which are not supported; %s", convert)
	case features&^uint64(knownBits) != 0:
		return backingimage.Errorf(backingimage.Unsupported, "the qcow2 image has features that are not known (bits %#x); %s", features&^uint64(knownBits), convert)
	}
	return nil
}

// parseGeometry checks sizes and tables.
func (h *header) parseGeometry(head []byte, fileBytes int64, limits Limits) error {
	h.clusterBits = binary.BigEndian.Uint32(head[20:])
	if h.clusterBits < 9 || h.clusterBits > 21 {
		return corrupt("its clusters have 2^%d bytes; 2^9 to 2^21 exist", h.clusterBits)
	}
	size := binary.BigEndian.Uint64(head[24:])
	if size == 0 {
		return backingimage.Errorf(backingimage.Invalid, "the qcow2 image's virtual size is 0; publish one that holds a disk")
	}
	if err := limits.CheckVirtual(size); err != nil {
		return err
	}
	h.virtualBytes = int64(size)
	if err := h.parseL1(head, fileBytes); err != nil {
		return err
	}
	offset, length := binary.BigEndian.Uint64(head[48:]), uint64(binary.BigEndian.Uint32(head[56:]))<<h.clusterBits
	if err := h.checkTable("the refcount table", offset, length, fileBytes); err != nil {
		return err
	}
	entries := int64(binary.BigEndian.Uint32(head[36:]))
	h.metadata = []area{
		{"the header", 0, h.clusterBytes()}, {"the L1 table", h.l1Offset, entries * 8}, {"the refcount table", int64(offset), int64(length)},
	}
	return checkOverlap(h.metadata)
}

func (h *header) parseL1(head []byte, fileBytes int64) error {
	entries, offset := int64(binary.BigEndian.Uint32(head[36:])), binary.BigEndian.Uint64(head[40:])
	perEntry := h.clusterBytes() * h.l2Entries()
	h.l1Entries = (h.virtualBytes-1)/perEntry + 1
	if entries*8 > maxL1Bytes || h.l1Entries*8 > maxL1Bytes {
		return backingimage.Errorf(backingimage.OutOfRange, "the qcow2 image's L1 table is larger than %d bytes; %s with larger clusters (-o cluster_size=65536)", maxL1Bytes, convert)
	}
	if entries < h.l1Entries {
		return corrupt("its L1 table has %d entries, its size needs %d", entries, h.l1Entries)
	}
	h.l1Offset = int64(offset)
	return h.checkTable("the L1 table", offset, uint64(entries)*8, fileBytes)
}

// checkTable checks that a table begins at a cluster and, where the file's size is known, lies within it.
func (h *header) checkTable(what string, offset, length uint64, fileBytes int64) error {
	if bits.TrailingZeros64(offset) < int(h.clusterBits) || offset == 0 {
		return corrupt("%s is at offset %d, where no cluster begins", what, offset)
	}
	if !within(offset, length, fileBytes) {
		return truncated(what, offset, fileBytes)
	}
	return nil
}

// within reports whether length bytes at offset are in a file of fileBytes; when that is not known (-1), whether any
// file could have them.
func within(offset, length uint64, fileBytes int64) bool {
	end := offset + length
	if end < offset || end > 1<<63-1 {
		return false
	}
	return fileBytes < 0 || end <= uint64(fileBytes)
}
