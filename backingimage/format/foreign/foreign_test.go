package foreign

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
)

func TestDescriptionsThatNameAnotherFile(t *testing.T) {
	for text, want := range map[string]bool{
		`{"virtual-size": 512, "filename": "/source", "format": "vdi"}`:                                                   false,
		`{"format-specific": {"type": "vmdk", "data": {"parent-cid": 4294967295, "extents": [{"filename": "/source"}]}}}`: false,
		`{"format-specific": {"type": "vmdk", "data": {"parent-cid": 1, "extents": [{"filename": "/source"}]}}}`:          true,
		`{"format-specific": {"type": "vmdk", "data": {"extents": [{"filename": "/source"}, {"filename": "/usr/x"}]}}}`:   true,
		`{"backing-filename": "x"}`:                                      true,
		`{"full-backing-filename": "json:{}"}`:                           true,
		`{"format-specific": {"data": {"extents": [{"filename": ""}]}}}`: true,
	} {
		d, err := parse(text)
		if err != nil || d.namesAnotherFile() != want {
			t.Errorf("%s: got %t, %v", text, d.namesAnotherFile(), err)
		}
	}
}

// mustMake makes an image with qemu-img.
func mustMake(tb testing.TB, name, size string, options ...string) Image {
	tb.Helper()
	i := Image{Format: name, Path: filepath.Join(tb.TempDir(), "image")}
	args := append([]string{"create", "-q", "-f", drivers[name]}, options...)
	if out, err := exec.Command("qemu-img", append(args, i.Path, size)...).CombinedOutput(); err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	return i
}

func TestInspectTellsTheSizeWithinTheLimits(t *testing.T) {
	for name := range drivers {
		i := mustMake(t, name, "1023M")
		got, err := i.Inspect(context.Background(), format.Limits{})
		if err != nil || got < 1023<<20 || got > 1024<<20 { // a VHD's size is a geometry's
			t.Errorf("%s: got %d, %v", name, got, err)
		}
		if _, err := i.Inspect(context.Background(), format.Limits{MaxVirtualBytes: 1 << 20}); !backingimage.Is(err, backingimage.OutOfRange) {
			t.Errorf("%s over the limit: %v", name, err)
		}
	}
}

// TestAnImageCannotChooseItsReader: a file of one format that is said to be another is refused, not probed.
func TestAnImageCannotChooseItsReader(t *testing.T) {
	qcow2 := mustMake(t, format.VDI, "1M")
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", qcow2.Path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name := range drivers {
		_, err := Image{Format: name, Path: qcow2.Path}.Inspect(context.Background(), format.Limits{})
		if !backingimage.Is(err, backingimage.Corrupt) || strings.Contains(err.Error(), qcow2.Path) {
			t.Errorf("as %s: got %v", name, err)
		}
	}
}

func TestAConversionStaysWithinItsFile(t *testing.T) {
	i := mustMake(t, format.VDI, "4M", "-o", "static=on")
	if out, err := exec.Command("qemu-io", "-f", "vdi", "-c", "write -P 7 0 4M", i.Path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	to := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(to, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(to, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := i.Convert(context.Background(), to, 1<<20); err == nil { // a size that Inspect did not give
		t.Error("it was converted")
	}
	if info, err := os.Stat(to); err != nil || info.Size() > 1<<20 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
}
