package mount

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/command"
)

// Content is what a device holds, as blkid sees it. The zero Content is a device with nothing recognisable on it.
type Content struct {
	Type           string // a filesystem's or another signature's name: ext4, xfs, crypto_LUKS, LVM2_member …
	Filesystem     bool   // Type is a filesystem
	Unfinished     bool   // Type is an XFS whose mkfs was killed
	Zeros          bool   // the beginning and the end of the device are all zeros
	PartitionTable string // gpt or dos, when there is one and nothing else was found
	Partitions     []Partition
}

// Blank reports whether nothing recognisable is on the device.
func (c Content) Blank() bool { return c.Type == "" && c.PartitionTable == "" }

// Partition is an entry of a partition table.
type Partition struct {
	Number int
	Bytes  int64
	Type   string // what blkid finds inside, "" when nothing
}

// String is a partition as a person would name it.
func (p Partition) String() string {
	t := p.Type
	if t == "" {
		t = "no filesystem"
	}
	return fmt.Sprintf("%d (%s, %d MiB)", p.Number, t, p.Bytes>>20)
}

// Exit codes of blkid -p.
const (
	blkidNothing   = 2
	blkidAmbiguous = 8
)

// Probe looks what is on a device, past every cache. A device that cannot be read is an error and never blank.
// Precondition when signatures contradict each other.
func Probe(ctx context.Context, d Device) (Content, error) {
	zeros, err := readEnds(d)
	if err != nil {
		return Content{}, err
	}
	found, err := blkid(ctx, d.Path)
	if err != nil {
		return Content{}, err
	}
	c := Content{Type: found["TYPE"], Filesystem: found["USAGE"] == "filesystem", Zeros: zeros}
	if c.Type == "" && found["PTTYPE"] != "" {
		c.PartitionTable = found["PTTYPE"]
		c.Partitions, err = partitions(ctx, d.Path)
		return c, err
	}
	if c.Type == XFS {
		sb, err := readSuperblock(d.Path, XFS)
		if err != nil {
			return Content{}, err
		}
		c.Unfinished = sb.unfinished
	}
	return c, nil
}

// readEnds reads the beginning and the end of a device, because blkid's exit code does not tell a device that cannot be
// read from one on which there is nothing, and reports whether both are all zeros.
func readEnds(d Device) (zeros bool, err error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return false, fmt.Errorf("probe: %w", err)
	}
	defer f.Close()
	buf := make([]byte, min(d.Bytes, 128<<10))
	nothing := make([]byte, len(buf))
	zeros = true
	for _, offset := range []int64{0, d.Bytes - int64(len(buf))} {
		if _, err := f.ReadAt(buf, offset); err != nil && err != io.EOF {
			return false, backingimage.Errorf(backingimage.Corrupt, "probe %s: reading at %d failed, nothing was changed: %w", d.Path, offset, err)
		}
		zeros = zeros && bytes.Equal(buf, nothing)
	}
	return zeros, nil
}

// blkid runs a low-level probe and returns its tags; none when it finds nothing.
func blkid(ctx context.Context, device string, where ...string) (map[string]string, error) {
	out, err := command.Run(ctx, "blkid", append(append([]string{"-p", "-o", "export"}, where...), device)...)
	switch command.ExitCode(err) {
	case 0:
		if err != nil {
			return nil, fmt.Errorf("probe %s: %w", device, err)
		}
	case blkidNothing:
		return nil, nil
	case blkidAmbiguous:
		return nil, backingimage.Errorf(backingimage.Precondition, "%s carries signatures that contradict each other; use volumeMode Block and look with wipefs what they are", device)
	default:
		return nil, fmt.Errorf("probe %s: %w", device, err)
	}
	tags := map[string]string{}
	for line := range strings.Lines(out) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			tags[key] = value
		}
	}
	return tags, nil
}

// partitions lists a partition table, whether or not the kernel has scanned it, and looks into each partition.
func partitions(ctx context.Context, device string) ([]Partition, error) {
	out, err := command.Run(ctx, "partx", "--noheadings", "--raw", "--bytes", "--output", "NR,START,SIZE", device)
	if err != nil {
		return nil, fmt.Errorf("list partitions of %s: %w", device, err)
	}
	var list []Partition
	for line := range strings.Lines(out) {
		var p Partition
		var start int64
		if _, err := fmt.Sscan(line, &p.Number, &start, &p.Bytes); err != nil {
			continue // not an entry
		}
		at := []string{"--offset", strconv.FormatInt(start*512, 10), "--size", strconv.FormatInt(p.Bytes, 10)}
		if found, err := blkid(ctx, device, at...); err == nil { // one that cannot be told is listed without a type
			p.Type = found["TYPE"]
		}
		list = append(list, p)
	}
	return list, nil
}
