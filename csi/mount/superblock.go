package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"plinth.dev/plinth/backingimage"
)

// Names of the filesystems that Plinth makes and mounts, as blkid and mount know them.
const (
	Ext4 = "ext4"
	XFS  = "xfs"
)

// superblock is what growing and recovery need to know of a filesystem.
type superblock struct {
	bytes int64 // what the filesystem covers of its device
	// leastGain is the least further space, in bytes, that growing makes use of: less than that would hold only the
	// metadata of another group.
	leastGain  int64
	needsCheck bool // ext4: resize2fs will refuse it until e2fsck -f has been over it
	unfinished bool // XFS: mkfs was killed
}

// gains reports whether growing the filesystem to its device's size would make use of any of it.
func (sb superblock) gains(d Device) bool { return d.Bytes-sb.bytes >= sb.leastGain }

const (
	superblockBytes = 2048 // enough to hold ext4's, which is at 1024
	ext4Offset      = 1024
	ext4Magic       = 0xef53
	xfsMagic        = "XFSB"
)

var parseSuperblock = map[string]func([]byte) (superblock, error){Ext4: parseExt4, XFS: parseXFS}

func readSuperblock(path, fsType string) (superblock, error) {
	f, err := os.Open(path)
	if err != nil {
		return superblock{}, fmt.Errorf("read superblock: %w", err)
	}
	defer f.Close()
	raw := make([]byte, superblockBytes)
	if _, err := io.ReadFull(f, raw); err != nil {
		return superblock{}, fmt.Errorf("read superblock of %s: %w", path, err)
	}
	parse, ok := parseSuperblock[fsType]
	if !ok {
		return superblock{}, backingimage.Errorf(backingimage.Unsupported, "%s: Plinth does not grow %s", path, fsType)
	}
	sb, err := parse(raw)
	if err != nil {
		return superblock{}, fmt.Errorf("read superblock of %s: %w", path, err)
	}
	return sb, nil
}

// parseExt4 reads the fields by the offsets of the kernel's documentation, "Super Block".
func parseExt4(raw []byte) (superblock, error) {
	sb, le := raw[ext4Offset:], binary.LittleEndian
	if le.Uint16(sb[0x38:]) != ext4Magic {
		return superblock{}, errors.New("no ext4 magic")
	}
	shift := le.Uint32(sb[0x18:])
	if shift > 6 { // 64 KiB blocks are the largest
		return superblock{}, fmt.Errorf("impossible block size 2^(10+%d)", shift)
	}
	const featureRecover, feature64bit, stateValid, stateErrors = 0x4, 0x80, 1, 2
	blockSize := int64(1024) << shift
	blocks := int64(le.Uint32(sb[0x04:]))
	features := le.Uint32(sb[0x60:])
	if features&feature64bit != 0 {
		blocks |= int64(le.Uint32(sb[0x150:])) << 32
	}
	state := le.Uint16(sb[0x3a:])
	mounted, checked := le.Uint32(sb[0x2c:]), le.Uint32(sb[0x40:])
	// A last group that cannot hold its bitmaps, its inode table and 50 blocks more is left out by mke2fs and resize2fs.
	inodeTable := int64(le.Uint32(sb[0x28:])) * int64(le.Uint16(sb[0x58:]))
	groups := blocks/max(1, int64(le.Uint32(sb[0x20:]))) + 1
	descriptors := (int64(le.Uint16(sb[0xce:])) + groups/16 + 1) * blockSize // at least 16 fit into a block
	return superblock{
		bytes:      blocks * blockSize,
		leastGain:  inodeTable + descriptors + 54*blockSize,
		needsCheck: checked < mounted || state&stateValid == 0 || state&stateErrors != 0 || features&featureRecover != 0,
	}, nil
}

// parseXFS reads the fields by the offsets of struct xfs_dsb. A last allocation group of less than 64 blocks is left out.
func parseXFS(raw []byte) (superblock, error) {
	be := binary.BigEndian
	if string(raw[:4]) != xfsMagic {
		return superblock{}, errors.New("no XFS magic")
	}
	blockSize := int64(be.Uint32(raw[4:]))
	return superblock{
		bytes:      int64(be.Uint64(raw[8:])) * blockSize,
		leastGain:  64 * blockSize,
		unfinished: raw[126] != 0, // sb_inprogress
	}, nil
}
