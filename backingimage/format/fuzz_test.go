package format_test

import (
	"testing"

	"plinth.dev/plinth/backingimage/format"
)

// FuzzProbe: no head makes it panic, and what it accepts has a size within the limit.
func FuzzProbe(f *testing.F) {
	f.Add(mustImage(f, content(100<<10))[:format.HeadBytes], int64(1<<20))
	f.Add(mustImage(f, content(100<<10), "-o", "compat=0.10")[:format.HeadBytes], int64(-1))
	f.Add([]byte("<html>"), int64(6))
	limits := format.Limits{MaxVirtualBytes: 1 << 40}
	f.Fuzz(func(t *testing.T, head []byte, bytes int64) {
		info, err := format.Probe(head, bytes, limits)
		if err != nil || info == (format.Info{Format: format.Raw, VirtualBytes: -1}) && bytes < 0 {
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
	f.Fuzz(func(t *testing.T, file []byte) {
		_, _ = convert(file, format.Limits{MaxVirtualBytes: 4 << 20}) // convert itself checks what comes
	})
}
