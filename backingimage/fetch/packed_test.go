package fetch_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/format"
)

// packers are the standard tools, by the names of formats.
var packers = map[string][]string{
	format.GZip: {"gzip", "-1c"}, format.XZ: {"xz", "-0c"}, format.Zstd: {"zstd", "-1qc"}, format.BZip2: {"bzip2", "-1c"},
}

func mustPack(tb testing.TB, name string, content []byte) []byte {
	tb.Helper()
	cmd := exec.Command(packers[name][0], packers[name][1:]...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(content), &out, os.Stderr
	if err := cmd.Run(); err != nil {
		tb.Fatalf("%v: %v", cmd.Args, err)
	}
	return out.Bytes()
}

// foreignDrivers are qemu-img's arguments that make another hypervisor's disk.
var foreignDrivers = map[string][]string{
	"vmdk": {"-O", "vmdk"}, "vmdk, stream-optimized": {"-O", "vmdk", "-o", "subformat=streamOptimized"}, "vdi": {"-O", "vdi"},
	"vhd": {"-O", "vpc", "-o", "force_size=on"}, "vhdx": {"-O", "vhdx"}, "vhd, fixed": {"-O", "vpc", "-o", "subformat=fixed,force_size=on"},
	"vdi, fixed": {"-O", "vdi", "-o", "static=on"}, "vhdx, fixed": {"-O", "vhdx", "-o", "subformat=fixed"},
}

// mustConvert makes an image of content with qemu-img.
func mustConvert(tb testing.TB, content []byte, args ...string) []byte {
	tb.Helper()
	dir := tb.TempDir()
	raw, image := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	mustRun(tb, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), raw, image)...)
	return mustRead(tb, image)
}

func mustRead(tb testing.TB, path string) []byte {
	tb.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// mustFetch fetches a file that must become content, and returns the result and the steps.
func mustFetch(tb testing.TB, file, content []byte, change func(*fetch.Job)) (fetch.Result, string) {
	tb.Helper()
	j := job(tb, mustServe(tb, &server{content: file, tag: "v1"}))
	if change != nil {
		change(&j)
	}
	var steps []string
	result, err := fetch.Run(context.Background(), j, func(p fetch.Progress) {
		if len(steps) == 0 || steps[len(steps)-1] != p.Step {
			steps = append(steps, p.Step)
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	mustEqual(tb, j.Dir, content, result)
	if result.Checksum != sha512Hex(file) || result.SourceBytes != int64(len(file)) {
		tb.Errorf("the result is %+v", result)
	}
	return result, strings.Join(steps, " ")
}

func TestPackedImagesAreUnpacked(t *testing.T) {
	content := image(1, 9<<20)
	images := map[string][]byte{"raw": content, "qcow2": mustQCOW2(t, content), "vmdk": mustConvert(t, content, foreignDrivers["vmdk"]...)}
	for packing := range packers {
		for name, file := range images {
			t.Run(name+"+"+packing, func(t *testing.T) {
				t.Parallel()
				result, steps := mustFetch(t, mustPack(t, packing, file), content, nil)
				want := "downloading unpacking"
				if name != "raw" {
					want += " converting"
				}
				if result.Format != name+"+"+packing || steps != want || result.RealBytes >= 9<<20 {
					t.Errorf("the result is %+v after %s", result, steps)
				}
			})
		}
	}
}

func TestOtherHypervisorsDisksAreConverted(t *testing.T) {
	content := image(1, 9<<20)
	for name, args := range foreignDrivers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := mustConvert(t, content, args...)
			result, _ := mustFetch(t, file, content, nil)
			if want, _, _ := strings.Cut(name, ","); result.Format != want || result.RealBytes >= 9<<20 {
				t.Errorf("the result is %+v", result)
			}
			packed, _ := mustFetch(t, mustPack(t, format.GZip, file), content, nil)
			if packed.Format != result.Format+"+gz" || packed.ContentDigest != result.ContentDigest {
				t.Errorf("packed, the result is %+v", packed)
			}
		})
	}
}

func TestAFooterThatIsNoneStays(t *testing.T) {
	content := image(1, 4<<20)
	vhd := mustConvert(t, content, foreignDrivers["vhd, fixed"]...)
	for name, file := range map[string][]byte{
		"a wrong checksum": append(bytes.Clone(vhd[:len(vhd)-1]), 1),
		"another size":     vhd[1<<20:],
	} {
		if result, _ := mustFetch(t, file, file, nil); result.Format != format.Raw {
			t.Errorf("%s: the result is %+v", name, result)
		}
	}
}

func TestAnISOIsRaw(t *testing.T) {
	iso := image(1, 3<<20)
	clear(iso[:32<<10])
	copy(iso[32<<10:], "\x01CD001\x01\x00LINUX")
	if result, _ := mustFetch(t, iso, iso, nil); result.Format != format.Raw {
		t.Errorf("the result is %+v", result)
	}
}

func TestAnySizeIsPaddedAndRecorded(t *testing.T) {
	for _, n := range []int{1, 511, 512, 513, 4095, 4097, 2<<20 - 1, 2 << 20, 2<<20 + 1} {
		content := image(3, n)
		for packing, file := range map[string][]byte{"": content, "+xz": mustPack(t, format.XZ, content)} {
			if result, _ := mustFetch(t, file, content, nil); result.VirtualBytes != format.Padded(int64(n)) || result.Format != "raw"+packing {
				t.Errorf("%d bytes%s: the result is %+v", n, packing, result)
			}
		}
	}
	one := mustQCOW2(t, []byte("x"))
	copy(one[24:], []byte{0, 0, 0, 0, 0, 0, 0, 1})
	if result, _ := mustFetch(t, one, []byte("x"), nil); result.VirtualBytes != 512 || result.SourceBytes != int64(len(one)) {
		t.Errorf("qcow2 of 1 byte: the result is %+v", result)
	}
}

func TestSnapshotsInsideAreLeftOut(t *testing.T) {
	content := image(1, 3<<20)
	path := filepath.Join(t.TempDir(), "qcow2")
	if err := os.WriteFile(path, mustQCOW2(t, content), 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, "qemu-img", "snapshot", "-c", "one", path)
	mustRun(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", path)
	mustRun(t, "qemu-img", "snapshot", "-c", "two", path)
	mustRun(t, "qemu-io", "-f", "qcow2", "-c", "write -P 9 512k 1M", path)
	copy(content, bytes.Repeat([]byte{7}, 512<<10))
	copy(content[512<<10:], bytes.Repeat([]byte{9}, 1<<20))
	for name, file := range map[string][]byte{"plain": mustRead(t, path), "packed": mustPack(t, format.Zstd, mustRead(t, path))} {
		if result, _ := mustFetch(t, file, content, nil); result.Warning != "2 snapshots inside the qcow2 file were left out" {
			t.Errorf("%s: the result is %+v", name, result)
		}
	}
}

// mustTar makes an archive of files, in the order given.
func mustTar(tb testing.TB, files ...string) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: files[i], Mode: 0o600, Size: int64(len(files[i+1]))}); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write([]byte(files[i+1])); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func inArchive(j *fetch.Job) { j.ArchiveFolder = "disk" }

func TestImagesComeOutOfArchives(t *testing.T) {
	content := image(1, 9<<20)
	for name, file := range map[string][]byte{"raw": content, "qcow2": mustQCOW2(t, content)} {
		for _, path := range []string{"disk/image", "./disk/image", "/disk/image"} {
			archive := mustTar(t, "etc/passwd", "root", path, string(file), "readme", "none")
			for packing, packed := range map[string][]byte{"tar": archive, "tar+gz": mustPack(t, format.GZip, archive), "tar+zst": mustPack(t, format.Zstd, archive)} {
				if result, _ := mustFetch(t, packed, content, inArchive); result.Format != name+"+"+packing {
					t.Errorf("%s in %s: the result is %+v", path, packing, result)
				}
			}
		}
	}
}

func TestASizeThatIsNotKnownEarlyIsNotTold(t *testing.T) {
	content := image(1, 9<<20)
	qcow2 := mustQCOW2(t, content)
	for name, c := range map[string]struct {
		file []byte
		want int64
	}{
		"raw+gz":   {mustPack(t, format.GZip, content), -1},
		"raw+xz":   {mustPack(t, format.XZ, content), -1},
		"raw+zst":  {mustZstdOfSize(t, content), 9 << 20},
		"qcow2+gz": {mustPack(t, format.GZip, qcow2), 9 << 20},
	} {
		j := job(t, mustServe(t, &server{content: c.file}))
		told := int64(-2)
		if _, err := fetch.Run(context.Background(), j, func(p fetch.Progress) {
			if told == -2 && p.Format == name {
				told = p.VirtualBytes
			}
		}); err != nil {
			t.Fatal(err)
		}
		if told != c.want {
			t.Errorf("%s: a size of %d was told first, want %d", name, told, c.want)
		}
	}
}

// mustZstdOfSize packs so that the size inside stands in the header.
func mustZstdOfSize(tb testing.TB, content []byte) []byte {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	mustRun(tb, "zstd", "-1q", path)
	return mustRead(tb, path+".zst")
}

// zeroBomb is a file of many members that each hold 16 MiB of zeros.
func zeroBomb(tb testing.TB, packing string, bytesInside int) []byte {
	return bytes.Repeat(mustPack(tb, packing, make([]byte, 16<<20)), bytesInside/(16<<20))
}

// bombBytes is what bombs are unpacked to; less where the race detector makes that slow.
func bombBytes() int {
	if testing.Short() {
		return 32 << 20
	}
	return 256 << 20
}

func TestABombOfZerosWithinTheLimitTakesNoRoom(t *testing.T) {
	for packing := range packers {
		t.Run(packing, func(t *testing.T) {
			t.Parallel()
			bytes := bombBytes()
			j := job(t, mustServe(t, &server{content: zeroBomb(t, packing, bytes)}))
			result, err := fetch.Run(context.Background(), j, nil)
			if err != nil || result.VirtualBytes != int64(bytes) || result.RealBytes > 1<<20 {
				t.Errorf("the result is %+v, %v", result, err)
			}
		})
	}
}

func TestBombsEndAtTheLimit(t *testing.T) {
	for packing := range packers {
		t.Run(packing, func(t *testing.T) {
			t.Parallel()
			j := job(t, mustServe(t, &server{content: zeroBomb(t, packing, 64<<30)}))
			j.Limits.MaxVirtualBytes = int64(bombBytes())
			_, err := fetch.Run(context.Background(), j, nil)
			if !backingimage.Is(err, backingimage.OutOfRange) || !strings.Contains(err.Error(), fmt.Sprint(bombBytes())) {
				t.Errorf("got %v error %v", backingimage.KindOf(err), err)
			}
			mustBeGone(t, j.Dir)
		})
	}
}

func TestWrongChecksumsOfPackedFilesAreNoticedBeforeTheyAreUnpacked(t *testing.T) {
	j := job(t, mustServe(t, &server{content: zeroBomb(t, format.Zstd, 64<<30)}))
	j.Checksum = sha512Hex(nil)
	if _, err := fetch.Run(context.Background(), j, nil); !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), "checksum: ") {
		t.Errorf("got %v error %v", backingimage.KindOf(err), err)
	}
	mustBeGone(t, j.Dir)
}

func TestWhatThisMachineCannotConvertIsRefusedBeforeItsDownload(t *testing.T) {
	file := mustConvert(t, image(1, 20<<20), foreignDrivers["vmdk"]...)
	packed := mustPack(t, format.GZip, file)
	t.Setenv("PATH", t.TempDir())
	for name, file := range map[string][]byte{"vmdk": file, "vmdk+gz": packed} {
		j := job(t, mustServe(t, &server{content: file}))
		if _, err := fetch.Run(context.Background(), j, nil); !backingimage.Is(err, backingimage.Unsupported) || !strings.Contains(err.Error(), "qemu-utils, bubblewrap") {
			t.Errorf("%s: got %v", name, err)
		}
		mustBeGone(t, j.Dir)
	}
}

func TestABombThatOnlyTakesTimeEnds(t *testing.T) {
	for name, file := range map[string][]byte{"alone": zeroBomb(t, format.XZ, 64<<30), "beside the image": mustBombedArchive(t)} {
		now := clocktesting.NewFakeClock(time.Now())
		j := job(t, mustServe(t, &server{content: file}))
		j.Clock = now
		if name != "alone" {
			inArchive(&j)
		}
		_, err := fetch.Run(context.Background(), j, func(p fetch.Progress) {
			if p.Step == fetch.Unpacking {
				now.Step(10 * time.Hour)
			}
		})
		if !backingimage.Is(err, backingimage.OutOfRange) || !strings.Contains(err.Error(), "not done after 4h") {
			t.Errorf("%s: got %v error %v", name, backingimage.KindOf(err), err)
		}
		mustBeGone(t, j.Dir)
	}
}

// mustBombedArchive is a packed archive with an image, and 64 GiB of zeros behind it.
func mustBombedArchive(tb testing.TB) []byte {
	return append(mustPack(tb, format.Zstd, mustTar(tb, "disk/image", "x")), zeroBomb(tb, format.Zstd, 64<<30)...)
}
