package format_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// mustRun runs a program.
func mustRun(tb testing.TB, name string, args ...string) {
	tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		tb.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// content is what a disk holds: text, noise, zeros in runs of every length, and nothing.
func content(n int) []byte {
	r := rand.New(rand.NewChaCha8([32]byte{3}))
	p := make([]byte, n)
	for at := 0; at < n; {
		length := min(1<<r.IntN(19), n-at)
		switch piece := p[at : at+length]; r.IntN(4) {
		case 0:
			for i := range piece {
				piece[i] = byte(r.Uint32())
			}
		case 1:
			copy(piece, bytes.Repeat([]byte(fmt.Sprintf("line %d of a log file\n", at)), length/20+1))
		}
		at += length
	}
	return p
}

// mustImage makes a qcow2 image of content with qemu-img and returns it.
func mustImage(tb testing.TB, content []byte, options ...string) []byte {
	tb.Helper()
	dir := tb.TempDir()
	raw, image := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	args := append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...)
	mustRun(tb, "qemu-img", append(args, raw, image)...)
	file, err := os.ReadFile(image)
	if err != nil {
		tb.Fatal(err)
	}
	return file
}

// convert converts in memory.
func convert(file []byte, limits format.Limits) ([]byte, error) {
	d, err := format.Open(bytes.NewReader(file), int64(len(file)), limits)
	if err != nil {
		return nil, err
	}
	out := make([]byte, d.VirtualBytes())
	var mu sync.Mutex
	seen := map[int64]bool{}
	err = d.Convert(context.Background(), func(c format.Chunk) error {
		mu.Lock()
		defer mu.Unlock()
		if seen[c.Index] {
			return fmt.Errorf("chunk %d came twice", c.Index)
		}
		seen[c.Index] = true
		copy(out[c.Index*manifest.ChunkBytes:], c.Data)
		for _, e := range c.Extents {
			at := e.At - c.Index*manifest.ChunkBytes
			if !bytes.Equal(c.Data[at:at+e.Bytes], file[e.Host:e.Host+e.Bytes]) {
				return fmt.Errorf("chunk %d is not what its extent at %d is", c.Index, e.Host)
			}
		}
		return nil
	})
	return out, err
}

func TestConvertEqualsTheContentThatQemuConverted(t *testing.T) {
	cases := map[string][]string{
		"version 3":               nil,
		"version 2":               {"-o", "compat=0.10"},
		"zlib":                    {"-c"},
		"zlib, version 2":         {"-c", "-o", "compat=0.10"},
		"zstd":                    {"-c", "-o", "compression_type=zstd"},
		"metadata preallocated":   {"-o", "preallocation=metadata"},
		"whole file preallocated": {"-o", "preallocation=falloc"},
		"lazy refcounts":          {"-o", "lazy_refcounts=on"},
		"refcounts of one bit":    {"-o", "refcount_bits=1"},
	}
	for _, cluster := range []string{"512", "4k", "1M", "2M"} {
		cases["clusters of "+cluster] = []string{"-o", "cluster_size=" + cluster}
		cases["zlib in clusters of "+cluster] = []string{"-c", "-o", "cluster_size=" + cluster}
		cases["zstd in clusters of "+cluster] = []string{"-c", "-o", "compression_type=zstd,cluster_size=" + cluster}
	}
	want := content(5<<20 + 3*512)
	for name, options := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := convert(mustImage(t, want, options...), format.Limits{})
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("error %v, equal %t", err, bytes.Equal(got, want))
			}
		})
	}
}

func TestConvertPadsToWholeSectors(t *testing.T) {
	for _, n := range []int{1, 511, 513, 65536 + 1, 2<<20 - 1, 2<<20 + 1} {
		want := content(n)
		for _, options := range [][]string{nil, {"-c"}} {
			got, err := convert(mustImage(t, want, options...), format.Limits{})
			if padded := append(bytes.Clone(want), make([]byte, format.Padded(int64(n))-int64(n))...); err != nil || !bytes.Equal(got, padded) {
				t.Errorf("%d bytes %v: error %v, equal %t", n, options, err, bytes.Equal(got, padded))
			}
		}
	}
}

func TestConvertPadsAVirtualSizeThatIsNoSector(t *testing.T) {
	want := content(128 << 10)
	file := mustImage(t, want)
	binary.BigEndian.PutUint64(file[24:], 128<<10-100)
	got, err := convert(file, format.Limits{})
	clear(want[128<<10-100:])
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("error %v, equal %t", err, bytes.Equal(got, want))
	}
}

func TestConvertFollowsWhatQemuDidToALiveImage(t *testing.T) {
	image := filepath.Join(t.TempDir(), "qcow2")
	mustRun(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "9M")
	for _, command := range []string{"write -P 7 0 3M", "discard 1M 512k", "write -z 2M 64k", "write -z -u 128k 64k", "write -P 9 8M 100k", "write -P 1 9436672 512", "write -c -P 5 4M 64k"} {
		mustRun(t, "qemu-io", "-f", "qcow2", "-c", command, image)
	}
	mustRun(t, "qemu-img", "snapshot", "-c", "before", image)
	mustRun(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 2M 300k", image)
	raw := image + ".raw"
	mustRun(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	got, err := convert(file, format.Limits{})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("error %v, equal %t", err, bytes.Equal(got, want))
	}
}

func TestConvertEndsWhenItsCallerDoes(t *testing.T) {
	file := mustImage(t, content(8<<20))
	d, err := format.Open(bytes.NewReader(file), int64(len(file)), format.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = d.Convert(ctx, func(format.Chunk) error { cancel(); return nil })
	if err == nil {
		t.Error("a cancelled conversion succeeded")
	}
}

func TestAPanicInAConversionIsItsError(t *testing.T) {
	file := mustImage(t, content(8<<20))
	d, err := format.Open(bytes.NewReader(file), int64(len(file)), format.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	err = d.Convert(context.Background(), func(format.Chunk) error { panic("on purpose") })
	if !backingimage.Is(err, backingimage.Internal) || !strings.Contains(err.Error(), "on purpose") {
		t.Errorf("got %v", err)
	}
}
