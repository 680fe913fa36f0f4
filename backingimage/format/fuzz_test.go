package format_test

import (
	"bytes"
	"testing"

	"plinth.dev/plinth/backingimage/format"
)

// FuzzProbe: no head makes it panic, and what it accepts has a size within the limit.
func FuzzProbe(f *testing.F) {
	f.Add(mustImage(f, content(100<<10))[:format.HeadBytes], int64(1<<20))
	f.Add(mustImage(f, content(100<<10), "-o", "compat=0.10")[:format.HeadBytes], int64(-1))
	f.Add([]byte("<html>"), int64(6))
	f.Add([]byte(`{"error": ["x", 1.5e3, null`), int64(-1))
	for _, head := range []string{"KDMV\x01", "KDMV\x01\x00\x00\x00\x00\x00\x00\x00\x08", "COWD", "conectix", "vhdxfile", "\x1f\x8b", "\xfd7zXZ\x00", "BZh9", "\x52\x2a\x4d\x18"} {
		f.Add([]byte(foreignHead(0, head)), int64(1<<20))
	}
	f.Add([]byte(foreignHead(64, "\x7f\x10\xda\xbe")), int64(1<<20))
	f.Add([]byte(foreignHead(257, "ustar")), int64(1<<20))
	limits := format.Limits{MaxVirtualBytes: 1 << 40}
	f.Fuzz(func(t *testing.T, head []byte, bytes int64) {
		_, _ = format.ProbeArchive(head, bytes, limits) // must not panic
		format.FixedVHD(head[:min(len(head), format.FooterBytes)], bytes)
		info, err := format.Probe(head, bytes, limits)
		inside, insideErr := format.ProbeInside(format.GZip, head, bytes, limits)
		if (err == nil && !info.Packed()) != (insideErr == nil) || insideErr == nil && inside != info {
			t.Errorf("outside %+v, %v; inside %+v, %v", info, err, inside, insideErr)
		}
		if err != nil || info.VirtualBytes == -1 && (bytes < 0 || info.Packed() || info.Foreign()) {
			return
		}
		if info.VirtualBytes > limits.MaxVirtualBytes || info.VirtualBytes%format.SectorBytes != 0 {
			t.Errorf("accepted %+v", info)
		}
	})
}

// FuzzConvert: no file makes a conversion panic, hang, or give what is not in its content. Its goroutines make coverage
// waver, so give -fuzzminimizetime=1x, or the time goes into minimizing.
func FuzzConvert(f *testing.F) {
	small := content(40 << 10)
	for _, options := range [][]string{
		{"-o", "cluster_size=512"}, {"-c", "-o", "cluster_size=512"}, {"-c", "-o", "cluster_size=4k"},
		{"-c", "-o", "cluster_size=4k,compression_type=zstd"}, {"-o", "cluster_size=512,compat=0.10"},
	} {
		f.Add(mustImage(f, small, options...))
	}
	good := mustImage(f, small)
	for _, c := range hostile {
		f.Add(c.edit(bytes.Clone(good)))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		_, _ = convert(file, format.Limits{MaxVirtualBytes: 4 << 20}) // convert itself checks what comes
	})
}
