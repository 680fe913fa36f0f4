// Package format decides what the bytes of a source are, once and for all, and turns them into raw content.
//
// Raw is the content already, and qcow2 is converted here. A compressed file is unpacked first (package unpack), and
// other hypervisors' disks are converted by qemu-img in a sandbox (package foreign). Probe decides from the first bytes,
// never from a name, and refuses everything else that it can recognise, with what to do about it: an archive, an
// encrypted disk or a web page would otherwise be stored faithfully as a raw disk that boots nowhere. The decision
// is never taken again: the guest that owns a raw disk may write a qcow2 header into it.
//
// # QCOW2 is hostile
//
// A qcow2 file is a program for composing a disk, and some of its instructions reach outside the file: a backing file,
// an external data file. Those are refused, as are encryption and features that this version of the format does not
// know. A cluster's address leads through two tables (L1 and L2, each entry an offset into the file); every offset is
// checked against the file before it is followed. What the tables refer to may not be more than the file holds, so that
// a small file cannot unfold one cluster a million times. Snapshots inside the file are ignored.
//
// Converting walks the tables in the order of the content and gathers chunks of 2 MiB, the manifest's unit. Workers read
// what a chunk needs in as few and large reads as its clusters allow, decompress, and hand the chunk on; holes are
// never touched. This is our own walk, rather than a library's, because it has to validate each step anyway, and because it
// alone knows which parts of a chunk stand in the file as they are, so that a filesystem can share them.
package format

import (
	"fmt"

	"plinth.dev/plinth/backingimage"
)

// Names of formats, as they stand in status and records. What is inside a packed file has the packings' names behind it:
// "qcow2+xz".
const (
	Raw   = "raw"
	QCOW2 = "qcow2"

	// Other hypervisors' disks, which package foreign converts.
	VMDK = "vmdk"
	VDI  = "vdi"
	VHD  = "vhd"
	VHDX = "vhdx"

	// Packings, which package unpack opens.
	GZip  = "gz"
	XZ    = "xz"
	Zstd  = "zst"
	BZip2 = "bz2"
	Tar   = "tar"
)

// HeadBytes is how many of a source's first bytes Probe wants to see; fewer only where the source has no more.
const HeadBytes = 4096

// Limits bound what an image may ask for.
type Limits struct {
	MaxVirtualBytes int64 // of the disk inside the image; 16 TiB by default
	MaxSourceBytes  int64 // of the file that the source serves; 16 TiB by default
}

// defaultMaxBytes is the size of the largest file on ext4 with 4 KiB blocks, and more than anyone clones per node.
const defaultMaxBytes = 16 << 40

// WithDefaults returns the limits with zero fields filled in.
func (l Limits) WithDefaults() Limits {
	if l.MaxVirtualBytes == 0 {
		l.MaxVirtualBytes = defaultMaxBytes
	}
	if l.MaxSourceBytes == 0 {
		l.MaxSourceBytes = defaultMaxBytes
	}
	return l
}

// CheckSource refuses, as OutOfRange, a source file of more bytes than the limit.
func (l Limits) CheckSource(bytes int64) error {
	if most := l.WithDefaults().MaxSourceBytes; bytes > most {
		return backingimage.Errorf(backingimage.OutOfRange, "the image's file has %d bytes or more, over the limit of %d bytes; use a smaller image or have the limit raised", bytes, most)
	}
	return nil
}

// CheckVirtual refuses, as OutOfRange, a content of more bytes than the limit.
func (l Limits) CheckVirtual(bytes uint64) error {
	if most := l.WithDefaults().MaxVirtualBytes; bytes > uint64(most) {
		return backingimage.Errorf(backingimage.OutOfRange, "the image's virtual size is %d bytes, over the limit of %d bytes; use a smaller image or have the limit raised", bytes, most)
	}
	return nil
}

// Info is what Probe found.
type Info struct {
	Format string
	// VirtualBytes is the size of the content, a multiple of 512; -1 while unknown: for a raw source that tells no size, a
	// packed one, and another hypervisor's disk.
	VirtualBytes int64
	// Warning says what of the file is left out, in a sentence; "" when nothing is.
	Warning string `json:",omitempty"`
}

// Packed reports whether the image is inside of the file and comes out when it is unpacked.
func (i Info) Packed() bool {
	switch i.Format {
	case GZip, XZ, Zstd, BZip2, Tar:
		return true
	}
	return false
}

// Foreign reports whether the file is another hypervisor's disk.
func (i Info) Foreign() bool {
	switch i.Format {
	case VMDK, VDI, VHD, VHDX:
		return true
	}
	return false
}

// SectorBytes is what the size of every content is padded to.
const SectorBytes = 512

// Padded rounds a size up to whole sectors.
func Padded(bytes int64) int64 { return (bytes + SectorBytes - 1) / SectorBytes * SectorBytes }

// Probe decides the format from a source's first bytes. sourceBytes is the size of the whole source, -1 when it is
// not known. A source that cannot become an image is Invalid (empty, a web page), Unsupported (a format or a feature
// that we do not read), OutOfRange (too large) or Corrupt (a header that contradicts itself).
func Probe(head []byte, sourceBytes int64, limits Limits) (Info, error) {
	if len(head) == 0 {
		return Info{}, backingimage.Errorf(backingimage.Invalid, "the source is empty; correct the URL or the file behind it")
	}
	if err := refuseKnown(head); err != nil {
		return Info{}, err
	}
	if err := limits.CheckSource(sourceBytes); err != nil {
		return Info{}, err
	}
	switch name := recognise(head); {
	case isQCOW2(head):
		return probeQCOW2(head, sourceBytes, limits)
	case name != "":
		return Info{Format: name, VirtualBytes: -1}, refuseForeign(name, head)
	case sourceBytes < 0:
		return Info{Format: Raw, VirtualBytes: -1}, nil
	}
	return Info{Format: Raw, VirtualBytes: Padded(sourceBytes)}, limits.CheckVirtual(uint64(sourceBytes))
}

func probeQCOW2(head []byte, sourceBytes int64, limits Limits) (Info, error) {
	h, err := parseHeader(head, sourceBytes, limits)
	if err != nil {
		return Info{}, err
	}
	info := Info{Format: QCOW2, VirtualBytes: Padded(h.virtualBytes)}
	switch h.snapshots {
	case 0:
	case 1:
		info.Warning = "1 snapshot inside the qcow2 file was left out"
	default:
		info.Warning = fmt.Sprintf("%d snapshots inside the qcow2 file were left out", h.snapshots)
	}
	return info, nil
}

// ProbeInside is Probe for what was inside of a packed file, whose format is outer. It is not unpacked again: a packed file
// in a packed file is Unsupported.
func ProbeInside(outer string, head []byte, bytes int64, limits Limits) (Info, error) {
	if len(head) == 0 {
		return Info{}, backingimage.Errorf(backingimage.Invalid, "the %s file is empty inside; correct the URL or the file behind it", outer)
	}
	info, err := Probe(head, bytes, limits)
	if err != nil {
		return Info{}, fmt.Errorf("inside the %s file: %w", outer, err)
	}
	if info.Packed() {
		return Info{}, backingimage.Errorf(backingimage.Unsupported, "inside the %s file is a %s file; pack the image once, not twice", outer, info.Format)
	}
	return info, nil
}

// ProbeArchive is Probe for a source that must be a tar archive, perhaps compressed. What is compressed is only known
// to be one when it is unpacked.
func ProbeArchive(head []byte, sourceBytes int64, limits Limits) (Info, error) {
	info := Info{Format: recognise(head), VirtualBytes: -1}
	if isTar(head) {
		info.Format = Tar
	}
	if !info.Packed() {
		return Info{}, backingimage.Errorf(backingimage.Invalid, "the source is no tar archive, plain or compressed; correct the reference")
	}
	return info, limits.CheckSource(sourceBytes)
}

// corrupt is the error of a qcow2 file that contradicts itself.
func corrupt(format string, args ...any) error {
	return backingimage.Errorf(backingimage.Corrupt, "the qcow2 file is damaged: %s; check it with \"qemu-img check\" and publish it anew", fmt.Sprintf(format, args...))
}

// truncated is the error of a qcow2 file that refers to what it does not have.
func truncated(what string, offset uint64, fileBytes int64) error {
	return backingimage.Errorf(backingimage.Corrupt, "the qcow2 file is truncated or damaged: %s at offset %d lies beyond its end at %d bytes; check it with \"qemu-img check\" and publish it anew", what, offset, fileBytes)
}
