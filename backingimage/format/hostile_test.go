package format_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
)

// Edits of a file's bytes, in big-endian.
type edit func(file []byte) []byte

func set32(at int, v uint32) edit {
	return func(f []byte) []byte { binary.BigEndian.PutUint32(f[at:], v); return f }
}

func set64(at int, v uint64) edit {
	return func(f []byte) []byte { binary.BigEndian.PutUint64(f[at:], v); return f }
}

func setByte(at int, v byte) edit {
	return func(f []byte) []byte { f[at] = v; return f }
}

func cut(n int) edit { return func(f []byte) []byte { return f[:n] } }

// firstL2 applies an edit to the L2 table that the first entry of the L1 table leads to.
func firstL2(change func(table []byte)) edit {
	return func(f []byte) []byte {
		l1 := binary.BigEndian.Uint64(f[40:])
		change(f[binary.BigEndian.Uint64(f[l1:])&0x00fffffffffffe00:][:64<<10])
		return f
	}
}

func l1Entry(v uint64) edit {
	return func(f []byte) []byte { binary.BigEndian.PutUint64(f[binary.BigEndian.Uint64(f[40:]):], v); return f }
}

func l2Entry(v uint64) edit {
	return firstL2(func(table []byte) { binary.BigEndian.PutUint64(table, v) })
}

// hostile are images that must be refused, made from a good one with clusters of 64 KiB.
var hostile = []struct {
	name    string
	edit    edit
	kind    backingimage.Kind
	message string
}{
	{"version 1", set32(4, 1), backingimage.Unsupported, "version 1"},
	{"version 4", set32(4, 4), backingimage.Unsupported, "version 4"},
	{"backing file", func(f []byte) []byte { return set32(16, 11)(set64(8, 512)(f)) }, backingimage.Unsupported, "backing file"},
	{"backing file without a name", set64(8, 512), backingimage.Unsupported, "backing file"},
	{"AES", set32(32, 1), backingimage.Unsupported, "encrypted"},
	{"LUKS", set32(32, 2), backingimage.Unsupported, "encrypted"},
	{"external data file", setByte(79, 4), backingimage.Unsupported, "another file"},
	{"extended L2", setByte(79, 16), backingimage.Unsupported, "subclusters"},
	{"marked corrupt", setByte(79, 2), backingimage.Corrupt, "marked as corrupt"},
	{"unknown feature", setByte(78, 1), backingimage.Unsupported, "0x100"},
	{"clusters of 256 bytes", set32(20, 8), backingimage.Corrupt, "2^8"},
	{"clusters of 4 MiB", set32(20, 22), backingimage.Corrupt, "2^22"},
	{"clusters beyond words", set32(20, 1<<31), backingimage.Corrupt, "clusters"},
	{"no size", set64(24, 0), backingimage.Invalid, "virtual size is 0"},
	{"more than the limit", set64(24, 1<<40+512), backingimage.OutOfRange, "over the limit"},
	{"negative size", set64(24, 1<<63), backingimage.OutOfRange, "over the limit"},
	{"L1 table too short", set32(36, 0), backingimage.Corrupt, "L1 table has 0"},
	{"L1 table too long", set32(36, 1<<31), backingimage.OutOfRange, "L1 table"},
	{"L1 table beyond the end", set64(40, 1<<30), backingimage.Corrupt, "L1 table at offset 1073741824"},
	{"L1 table beyond all files", set64(40, 0xffffffffffff0000), backingimage.Corrupt, "L1 table"},
	{"L1 table off its cluster", set64(40, 65537), backingimage.Corrupt, "no cluster begins"},
	{"refcount table beyond the end", set64(48, 1<<40), backingimage.Corrupt, "refcount table"},
	{"refcount table too long", set32(56, 1<<31), backingimage.Corrupt, "refcount table"},
	{"header too short", set32(100, 96), backingimage.Corrupt, "96 bytes long"},
	{"header too long", set32(100, 1<<20), backingimage.Corrupt, "bytes long"},
	{"reference counts of 128 bits", set32(96, 7), backingimage.Corrupt, "2^7"},
	{"unknown compression", func(f []byte) []byte { return setByte(79, 8)(setByte(104, 9)(f)) }, backingimage.Unsupported, "type 9"},
	{"compression without its bit", setByte(104, 1), backingimage.Corrupt, "contradicts itself"},
	{"half a header", cut(60), backingimage.Corrupt, "truncated"},
	{"no tables", cut(4096), backingimage.Corrupt, "truncated"},
	{"half of the data", func(f []byte) []byte { return f[:len(f)/2] }, backingimage.Corrupt, "truncated"},
	{"one byte short", func(f []byte) []byte { return f[:len(f)-1] }, backingimage.Corrupt, "truncated"},
	{"L1 table over the header", set64(40, 0), backingimage.Corrupt, "no cluster begins"},
	{"L1 table over the refcount table", func(f []byte) []byte { return set64(40, binary.BigEndian.Uint64(f[48:]))(f) }, backingimage.Corrupt, "overlaps"},
	{"L2 table over the L1 table", func(f []byte) []byte { return l1Entry(binary.BigEndian.Uint64(f[40:]))(f) }, backingimage.Corrupt, "overlaps the L1 table"},
	{"L2 table over the refcount table", func(f []byte) []byte { return l1Entry(binary.BigEndian.Uint64(f[48:]))(f) }, backingimage.Corrupt, "overlaps the refcount table"},
	{"L2 table used twice", func(f []byte) []byte {
		l1 := f[binary.BigEndian.Uint64(f[40:]):]
		copy(l1[8:16], l1[:8])
		return set32(36, 2)(set64(24, 1<<30)(f))
	}, backingimage.Corrupt, "twice"},
	{"L2 table beyond the end", l1Entry(1 << 40), backingimage.Corrupt, "L2 table"},
	{"L2 table off its cluster", l1Entry(3 << 9), backingimage.Corrupt, "no cluster begins"},
	{"data beyond the end", l2Entry(1 << 40), backingimage.Corrupt, "data cluster"},
	{"data off its cluster", l2Entry(5 << 9), backingimage.Corrupt, "no cluster begins"},
	{"compressed data beyond the end", l2Entry(1<<62 | 1<<40), backingimage.Corrupt, "compressed cluster"},
	{"compressed data that is none", l2Entry(1<<62 | 128), backingimage.Corrupt, "decompressed"},
	{"one cluster for all", firstL2(func(table []byte) {
		for i := 8; i < len(table); i += 8 {
			copy(table[i:], table[:8])
		}
	}), backingimage.Corrupt, "overlap"},
}

func TestHostileImagesAreRefused(t *testing.T) {
	raw := make([]byte, 64<<20)
	copy(raw, content(3<<20))
	good := mustImage(t, raw)
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			_, err := convert(c.edit(bytes.Clone(good)), format.Limits{MaxVirtualBytes: 1 << 40})
			if !backingimage.Is(err, c.kind) || !backingimage.Terminal(err) || !strings.Contains(err.Error(), c.message) {
				t.Errorf("got %v error %q, want %v with %q", backingimage.KindOf(err), err, c.kind, c.message)
			}
		})
	}
}

func TestZeroClustersOfVersion2AreRefused(t *testing.T) {
	file := l2Entry(1)(mustImage(t, content(1<<20), "-o", "compat=0.10"))
	if _, err := convert(file, format.Limits{}); !backingimage.Is(err, backingimage.Corrupt) {
		t.Errorf("got %v", err)
	}
}

func TestDirtyImagesAreAccepted(t *testing.T) {
	want := content(1 << 20)
	got, err := convert(setByte(79, 1)(mustImage(t, want)), format.Limits{})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("error %v", err)
	}
}

// foreignHead is a sector with a mark in it.
func foreignHead(at int, mark string) string {
	head := make([]byte, 512)
	copy(head[at:], mark)
	return string(head)
}

func TestProbeRefusesWhatIsNoDisk(t *testing.T) {
	for name, c := range map[string]struct {
		head string
		kind backingimage.Kind
		says string
	}{
		"empty":            {"", backingimage.Invalid, "empty"},
		"HTML":             {"<!DOCTYPE html><title>Log in</title>", backingimage.Invalid, "web page"},
		"HTML after space": {"\xef\xbb\xbf \r\n<HTML>", backingimage.Invalid, "web page"},
		"XML":              {"<?xml version='1.0'?><Error>", backingimage.Invalid, "web page"},
		"JSON":             {`{"error":"not found"}`, backingimage.Invalid, "JSON document"},
		"JSON list":        {" \n[1, 2", backingimage.Invalid, "JSON document"},
		"JSON, cut":        {`{"items":[{"name":"a long na`, backingimage.Invalid, "JSON document"},
		"lz4":              {"\x04\x22\x4d\x18", backingimage.Unsupported, "lz4"},
		"7-zip":            {"7z\xbc\xaf\x27\x1c", backingimage.Unsupported, "unpack it"},
		"zip":              {"PK\x03\x04", backingimage.Unsupported, "unpack it"},
		"VMDK descriptor":  {"# Disk DescriptorFile\nversion=1\n", backingimage.Unsupported, "descriptor"},
		"VMDK of extents":  {foreignHead(0, "KDMV\x01"), backingimage.Unsupported, "another file"},
		"VMDK, cut":        {"KDMV\x01\x00", backingimage.Corrupt, "truncated"},
		"VDI with a parent": {
			strings.Replace(foreignHead(64, "\x7f\x10\xda\xbe"), "\xda\xbe"+strings.Repeat("\x00", 8), "\xda\xbe"+strings.Repeat("\x00", 8)+"\x04", 1)[:512],
			backingimage.Unsupported, "another file",
		},
		"VHD with a parent": {foreignHead(0, "conectix"+strings.Repeat("\x00", 55)+"\x04"), backingimage.Unsupported, "another file"},
		"QED":               {"QED\x00", backingimage.Unsupported, "QED"},
		"Parallels":         {"WithoutFreeSpace", backingimage.Unsupported, "Parallels"},
		"LUKS":              {"LUKS\xba\xbe\x00\x02", backingimage.Unsupported, "decrypt"},
		"OVA":               {foreignHead(257, "ustar"), backingimage.Unsupported, "OVA"},
		"qcow 1":            {"QFI\xfb\x00\x00\x00\x01", backingimage.Unsupported, "version 1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := format.Probe([]byte(c.head), int64(len(c.head)), format.Limits{})
			if !backingimage.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v error %q", backingimage.KindOf(err), err)
			}
		})
	}
}

func TestProbeKnowsTheVirtualSizeFromTheFirstBytes(t *testing.T) {
	qcow2 := mustImage(t, content(1<<20))[:format.HeadBytes]
	for _, c := range []struct {
		name  string
		head  []byte
		bytes int64
		want  format.Info
	}{
		{"raw", make([]byte, 4096), 10001, format.Info{Format: format.Raw, VirtualBytes: 10240}},
		{"raw of unknown size", make([]byte, 4096), -1, format.Info{Format: format.Raw, VirtualBytes: -1}},
		{"qcow2", qcow2, 1 << 30, format.Info{Format: format.QCOW2, VirtualBytes: 1 << 20}},
		{"qcow2 of unknown size", qcow2, -1, format.Info{Format: format.QCOW2, VirtualBytes: 1 << 20}},
	} {
		if got, err := format.Probe(c.head, c.bytes, format.Limits{}); err != nil || got != c.want {
			t.Errorf("%s: got %+v, %v", c.name, got, err)
		}
	}
	if _, err := format.Probe(make([]byte, 4096), 1<<20+1, format.Limits{MaxVirtualBytes: 1 << 20}); !backingimage.Is(err, backingimage.OutOfRange) {
		t.Errorf("raw beyond the limit: %v", err)
	}
}

func TestProbeRecognisesByTheFirstBytes(t *testing.T) {
	for want, head := range map[string]string{
		format.GZip: "\x1f\x8b\x08\x00", format.XZ: "\xfd7zXZ\x00\x00", format.Zstd: "\x28\xb5\x2f\xfd", format.BZip2: "BZh91AY",
		format.VMDK: foreignHead(0, "KDMV\x01\x00\x00\x00\x00\x00\x00\x00\x08"), format.VDI: foreignHead(64, "\x7f\x10\xda\xbe"),
		format.VHDX: foreignHead(0, "vhdxfile"), format.VHD: foreignHead(0, "conectix"), format.Raw: "[section]\nkey=1\n",
	} {
		got, err := format.Probe([]byte(head), -1, format.Limits{})
		if err != nil || got.Format != want || got.VirtualBytes != -1 {
			t.Errorf("%s: got %+v, %v", want, got, err)
		}
	}
	if got, err := format.Probe([]byte("\x52\x2a\x4d\x18\x04\x00\x00\x00"), -1, format.Limits{}); err != nil || got.Format != format.Zstd {
		t.Errorf("a file of pzstd: got %+v, %v", got, err)
	}
}

func TestWhatIsPackedTwiceIsRefused(t *testing.T) {
	_, err := format.ProbeInside(format.GZip, []byte("\xfd7zXZ\x00"), -1, format.Limits{})
	if !backingimage.Is(err, backingimage.Unsupported) || !strings.Contains(err.Error(), "inside the gz file is a xz file") {
		t.Errorf("got %v", err)
	}
	if _, err := format.ProbeInside(format.GZip, nil, 0, format.Limits{}); !backingimage.Is(err, backingimage.Invalid) {
		t.Errorf("nothing inside: %v", err)
	}
}

func TestSnapshotsInsideAreLeftOutWithAWarning(t *testing.T) {
	image := filepath.Join(t.TempDir(), "qcow2")
	mustRun(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
	for _, want := range []string{"", "1 snapshot inside the qcow2 file was left out", "2 snapshots inside the qcow2 file were left out"} {
		file, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := format.Probe(file[:format.HeadBytes], int64(len(file)), format.Limits{}); err != nil || info.Warning != want {
			t.Errorf("got %+v, %v; want %q", info, err, want)
		}
		mustRun(t, "qemu-img", "snapshot", "-c", "s", image)
	}
}
