package fetch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/format"
)

// mustCreate makes an empty image with "qemu-img create ARGS FILE SIZE".
func mustCreate(tb testing.TB, size string, args ...string) []byte {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "image")
	mustRun(tb, "qemu-img", append(append([]string{"create", "-q"}, args...), path, size)...)
	return mustRead(tb, path)
}

// mustSecret is a file of this machine that no image may reach, with a mark in it.
func mustSecret(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "secret")
	if err := os.WriteFile(path, bytes.Repeat([]byte("secret of the host\n"), 1<<20/19), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// edit changes a copy of a file.
func edit(file []byte, at int, p ...byte) []byte {
	file = bytes.Clone(file)
	copy(file[at:], p)
	return file
}

func edit64(file []byte, at int, v uint64) []byte {
	return edit(file, at, binary.BigEndian.AppendUint64(nil, v)...)
}

// vmdkOf is a sparse VMDK of no capacity, whose descriptor inside says where its data is.
func vmdkOf(extent string) []byte {
	file := make([]byte, 64<<10)
	copy(file, "KDMV\x01\x00\x00\x00\x03\x00\x00\x00")
	binary.LittleEndian.PutUint64(file[28:], 1) // the descriptor's sector
	binary.LittleEndian.PutUint64(file[36:], 20)
	copy(file[512:], "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"+extent+"\n")
	return file
}

// sparseTar is an archive whose image is a hole of almost 8 EiB, as GNU tar has it in its old format, and in PAX's.
func sparseTar(tb testing.TB, pax bool) []byte {
	if !pax {
		archive := mustTar(tb, "disk/image", "")
		retype(archive, 'S', func(header []byte) {
			copy(header[257:], "ustar  \x00")
			copy(header[483:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
		})
		return archive
	}
	records := ""
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=disk/image", "GNU.sparse.realsize=9223372036854775807"} {
		records += fmt.Sprintf("%d %s\n", len(r)+4, r)
	}
	archive := mustTar(tb, "x", records, "disk/sparse", "0\n"+strings.Repeat("\x00", 510))
	retype(archive, 'x', func([]byte) {})
	return archive
}

// retype changes an archive's first header.
func retype(archive []byte, flag byte, change func(header []byte)) {
	header := archive[:512]
	header[156] = flag
	change(header)
	copy(header[148:], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// hostile is a file that must be refused, and how.
type hostile struct {
	name string
	file []byte
	kind backingimage.Kind
	says string
}

func qcow2Rows(tb testing.TB, secret string) []hostile {
	good := mustQCOW2(tb, image(1, 3<<20))
	l1 := binary.BigEndian.Uint64(good[40:])
	refcounts := binary.BigEndian.Uint64(good[48:])
	backing := func(name string) []byte { return mustCreate(tb, "1M", "-u", "-f", "qcow2", "-F", "raw", "-b", name) }
	return []hostile{
		{"backing file", backing(secret), backingimage.Unsupported, "backing file"},
		{"backing file that is missing", backing("/nonexistent"), backingimage.Unsupported, "backing file"},
		{"backing file json:", backing(`json:{"driver":"file","filename":"` + secret + `"}`), backingimage.Unsupported, "backing file"},
		{"backing file nbd://", backing("nbd://127.0.0.1:10809/x"), backingimage.Unsupported, "backing file"},
		{"external data file", mustCreate(tb, "1M", "-f", "qcow2", "-o", "data_file="+secret+".data,data_file_raw=on"), backingimage.Unsupported, "another file"},
		{"extended L2", mustCreate(tb, "1M", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k"), backingimage.Unsupported, "subclusters"},
		{"LUKS inside", edit(good, 32, 0, 0, 0, 2), backingimage.Unsupported, "encrypted"},
		{"header length that lies", edit(good, 100, 0, 1, 0, 0), backingimage.Corrupt, "bytes long"},
		{"L1 table beyond the file", edit64(good, 40, 1<<40), backingimage.Corrupt, "L1 table"},
		{"L2 table beyond the file", edit64(good, int(l1), 1<<40), backingimage.Corrupt, "L2 table"},
		{"refcount table beyond the file", edit64(good, 48, 1<<40), backingimage.Corrupt, "refcount table"},
		{"tables that overlap", edit64(good, 40, refcounts), backingimage.Corrupt, "overlaps"},
		{"an L2 table over the L1 table", edit64(good, int(l1), l1), backingimage.Corrupt, "overlaps"},
		{"virtual size 0", edit64(good, 24, 0), backingimage.Invalid, "virtual size is 0"},
		{"virtual size 8 EiB", edit64(good, 24, 1<<63-512), backingimage.OutOfRange, "over the limit"},
		{"a file shorter than its header says", good[:len(good)-100<<10], backingimage.Corrupt, "truncated"},
		{"half a header", good[:50], backingimage.Corrupt, "truncated"},
	}
}

func foreignRows(tb testing.TB, secret string) []hostile {
	content := image(1, 3<<20)
	parent := filepath.Join(tb.TempDir(), "parent.vmdk")
	mustRun(tb, "qemu-img", "create", "-q", "-f", "vmdk", parent, "1M")
	vmdk := mustConvert(tb, content, foreignDrivers["vmdk"]...)
	stream := mustConvert(tb, content, foreignDrivers["vmdk, stream-optimized"]...)
	vhdx := mustConvert(tb, content, foreignDrivers["vhdx"]...)
	vhd := mustConvert(tb, content, foreignDrivers["vhd"]...)
	vdi := mustConvert(tb, content, foreignDrivers["vdi"]...)
	return []hostile{
		{"VMDK descriptor", mustCreate(tb, "1M", "-f", "vmdk", "-o", "subformat=monolithicFlat"), backingimage.Unsupported, "descriptor"},
		{"VMDK with a parent", mustCreate(tb, "1M", "-f", "vmdk", "-b", parent, "-F", "vmdk"), backingimage.Unsupported, "another file"},
		{"VMDK with a flat extent elsewhere", vmdkOf(`RW 2048 FLAT "` + secret + `" 0`), backingimage.Unsupported, "another file"},
		{"VMDK cut", vmdk[:len(vmdk)/2], backingimage.Corrupt, "vmdk image"},
		{"VMDK of a head alone", vmdk[:600], backingimage.Corrupt, "vmdk image"},
		{"VDI with a parent", edit(vdi, 76, 4), backingimage.Unsupported, "another file"},
		{"VDI half", vdi[:len(vdi)/2], backingimage.Corrupt, "truncated"},
		{"VDI short by a byte", vdi[:len(vdi)-1], backingimage.Corrupt, "truncated"},
		{"VDI of 8 EiB", edit(vdi, 368, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f), backingimage.Corrupt, "vdi image"},
		{"VDI cut", vdi[:700], backingimage.Corrupt, "vdi image"},
		{"VHD with a parent", edit(vhd, 60, 0, 0, 0, 4), backingimage.Unsupported, "another file"},
		{"VHD cut", vhd[:1<<10], backingimage.Corrupt, "vhd image"},
		{"VHDX cut", vhdx[:1<<20], backingimage.Corrupt, "vhdx image"},
		{"VHD half", vhd[:len(vhd)/2], backingimage.Corrupt, "vhd image"},
		{"VHDX short by a byte", vhdx[:len(vhdx)-1], backingimage.Corrupt, "truncated"},
		{"stream-optimized VMDK cut", stream[:len(stream)-100<<10], backingimage.Corrupt, "vmdk image"},
		{"VHDX of noise", append([]byte("vhdxfile"), image(2, 1<<20)...), backingimage.Corrupt, "vhdx image"},
	}
}

func packedRows(tb testing.TB, secret string) []hostile {
	content := image(1, 3<<20)
	backed := mustCreate(tb, "1M", "-u", "-f", "qcow2", "-F", "raw", "-b", secret)
	rows := []hostile{
		{"nothing", nil, backingimage.Invalid, "empty"},
		{"JSON document", []byte("{\n  \"error\": \"denied\"\n}\n"), backingimage.Invalid, "JSON document"},
		{"tar inside", mustPack(tb, format.GZip, mustTar(tb, "disk/image", "x")), backingimage.Unsupported, "tar"},
		{"JSON document inside", mustPack(tb, format.GZip, []byte(`{"error": 1}`)), backingimage.Invalid, "JSON document"},
	}
	for packing := range packers {
		good := mustPack(tb, packing, content)
		rows = append(rows, []hostile{
			{packing + " cut", good[:len(good)-4000], backingimage.Corrupt, "truncated"},
			{packing + " cut at its head", good[:8], backingimage.Corrupt, "truncated"},
			{packing + " damaged", edit(good, len(good)/2, 1, 2, 3, 4, 5, 6, 7, 8), backingimage.Corrupt, "damaged"},
			{packing + " of nothing", mustPack(tb, packing, nil), backingimage.Invalid, "empty inside"},
			{packing + " of gz", mustPack(tb, packing, mustPack(tb, format.GZip, content)), backingimage.Unsupported, "pack the image once"},
			{packing + " of a backing file", mustPack(tb, packing, backed), backingimage.Unsupported, "backing file"},
			{packing + " of a web page", mustPack(tb, packing, []byte("<!DOCTYPE html>")), backingimage.Invalid, "web page"},
			{packing + " of a cut qcow2", mustPack(tb, packing, mustQCOW2(tb, content)[:1<<20]), backingimage.Corrupt, "truncated"},
		}...)
	}
	return rows
}

func archiveRows(tb testing.TB) []hostile {
	return []hostile{
		{"no archive", image(1, 1<<20), backingimage.Invalid, "no tar archive"},
		{"no archive inside", mustPack(tb, format.GZip, image(1, 1<<20)), backingimage.Corrupt, "tar archive"},
		{"no file", mustTar(tb, "image", "x"), backingimage.Invalid, "no file in its folder /disk"},
		{"two files", mustTar(tb, "disk/a", "x", "disk/b", "y"), backingimage.Invalid, "several files"},
		{"a hole of 8 EiB", sparseTar(tb, true), backingimage.OutOfRange, "over the limit"},
		{"a hole of 8 EiB, GNU", sparseTar(tb, false), backingimage.Invalid, "sparse"},
		{"a packed image", mustTar(tb, "disk/image", string(mustPack(tb, format.GZip, []byte("x")))), backingimage.Unsupported, "pack the image once"},
		{"an archive cut", mustTar(tb, "disk/image", strings.Repeat("x", 100<<10))[:64<<10], backingimage.Corrupt, "truncated"},
		{"a cut archive, packed", mustPack(tb, format.Zstd, mustTar(tb, "disk/image", strings.Repeat("x", 100<<10)))[:40], backingimage.Corrupt, "truncated"},
	}
}

// mustRefuse checks that each file ends in its error, for good, and that nothing of it is left.
func mustRefuse(t *testing.T, secret string, rows []hostile, change func(*fetch.Job)) {
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			j := job(t, mustServe(t, &server{content: row.file, tag: "v1"}))
			if change != nil {
				change(&j)
			}
			_, err := fetch.Run(context.Background(), j, nil)
			if !backingimage.Is(err, row.kind) || !backingimage.Terminal(err) || !strings.Contains(err.Error(), row.says) {
				t.Fatalf("got %v error %v, want %v with %q", backingimage.KindOf(err), err, row.kind, row.says)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error names a file of this machine: %v", err)
			}
			mustBeGone(t, j.Dir)
		})
	}
}

func TestHostileFilesEndTheAttemptForGood(t *testing.T) {
	secret := mustSecret(t)
	rows := append(qcow2Rows(t, secret), foreignRows(t, secret)...)
	mustRefuse(t, secret, append(rows, packedRows(t, secret)...), nil)
	t.Run("in archives", func(t *testing.T) { mustRefuse(t, secret, archiveRows(t), inArchive) })
}

// peakBytes is more than a fetch, its decoders and the program itself need, and less than any bomb holds.
const peakBytes = 128 << 20

func TestHostileFilesTakeLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector takes memory of its own; the test without it measures")
	}
	rows := append(qcow2Rows(t, mustSecret(t)), packedRows(t, "/nonexistent")...)
	rows = append(rows, hostile{name: "qcow2 of 1 TiB", file: mustCreate(t, "1T", "-f", "qcow2")})
	for packing := range packers {
		rows = append(rows, hostile{name: packing + " of zeros", file: zeroBomb(t, packing, bombBytes())})
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			c := mustStart(t, mustServe(t, &server{content: row.file}), filepath.Join(t.TempDir(), "staging"))
			said := c.end(t)
			var peak int64
			if _, err := fmt.Sscanf(said[0], "%d kB", &peak); err != nil {
				t.Fatalf("the child says %q", said)
			}
			if says := strings.Join(said[1:], " "); !strings.Contains(says, row.says) {
				t.Errorf("it ended with %q, not with %q", says, row.says)
			}
			if peak <<= 10; peak > peakBytes {
				t.Errorf("it took %s of memory", backingimage.SizeText(peak))
			}
		})
	}
}

func TestASmallFileOfHugeVirtualSizeTakesNoRoom(t *testing.T) {
	for name, c := range map[string]struct {
		bytes int64
		file  []byte
	}{
		"qcow2": {1 << 40, mustCreate(t, "1T", "-f", "qcow2")}, "vdi": {1 << 40, mustCreate(t, "1T", "-f", "vdi")},
		"vmdk": {32 << 30, mustCreate(t, "32G", "-f", "vmdk")}, "vhdx": {32 << 30, mustCreate(t, "32G", "-f", "vhdx")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := job(t, mustServe(t, &server{content: c.file}))
			result, err := fetch.Run(context.Background(), j, nil)
			if err != nil || result.VirtualBytes != c.bytes || result.RealBytes > 1<<20 {
				t.Errorf("the result is %+v, %v", result, err)
			}
			j = job(t, mustServe(t, &server{content: c.file}))
			j.Limits.MaxVirtualBytes = c.bytes - 512
			if _, err := fetch.Run(context.Background(), j, nil); !backingimage.Is(err, backingimage.OutOfRange) {
				t.Errorf("over the limit: %v", err)
			}
			mustBeGone(t, j.Dir)
		})
	}
}
