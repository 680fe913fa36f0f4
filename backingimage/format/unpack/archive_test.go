package unpack_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format/unpack"
)

// mustArchive makes a tar archive of headers; regular files hold their own name.
func mustArchive(tb testing.TB, headers ...tar.Header) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		h.Mode = 0o600
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// retype makes the first entry one of another type and size, and puts zeros behind the archive.
func retype(archive []byte, flag byte, size, behind int) []byte {
	header := archive[:512]
	header[156] = flag
	copy(header[124:], fmt.Sprintf("%011o ", size))
	copy(header[148:], "        ")
	sum := 0
	for _, b := range header {
		sum += int(b)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(archive, make([]byte, behind)...)
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }

func image(archive []byte, folder string, most int64) (string, error) {
	a := unpack.NewArchive(bytes.NewReader(archive), folder, most)
	r, _, err := a.Image()
	if err != nil {
		return "", err
	}
	p, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	return string(p), a.End()
}

func TestTheImageIsTheOneFileInTheFolder(t *testing.T) {
	folder := tar.Header{Typeflag: tar.TypeDir, Name: "disk/"}
	for _, name := range []string{"disk/image", "./disk/image", "/disk/image", "disk/../disk/image", "disk/" + strings.Repeat("é", 150)} {
		archive := mustArchive(t, file("etc/passwd"), folder, file("disk/deeper/file"), file(name), file("disk/.wh.old"), file("readme"))
		for _, in := range []string{"disk", "disk/", "/disk", "./disk"} {
			if got, err := image(archive, in, 1<<20); err != nil || got != name {
				t.Errorf("%s in %s: got %q, %v", name, in, got, err)
			}
		}
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	good := mustArchive(t, file("disk/image"))
	for _, c := range []struct {
		name    string
		archive []byte
		most    int64
		kind    backingimage.Kind
		says    string
	}{
		{"no file", mustArchive(t, file("image")), 1 << 20, backingimage.Invalid, "no file in its folder /disk;"},
		{"nothing", nil, 1 << 20, backingimage.Invalid, "no file in its folder"},
		{"a file that climbs out", mustArchive(t, file("disk/../image")), 1 << 20, backingimage.Invalid, "no file"},
		{"several files", mustArchive(t, file("disk/a"), file("disk/b")), 1 << 20, backingimage.Invalid, `several files in its folder /disk, among them "b"`},
		{"a symbolic link", mustArchive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "disk/image", Linkname: "/etc/passwd"}), 1 << 20, backingimage.Invalid, `there is "image", a link`},
		{"a link", mustArchive(t, tar.Header{Typeflag: tar.TypeLink, Name: "disk/image", Linkname: "/etc/passwd"}), 1 << 20, backingimage.Invalid, "a link"},
		{"a device", mustArchive(t, tar.Header{Typeflag: tar.TypeBlock, Name: "disk/image"}), 1 << 20, backingimage.Invalid, "a device"},
		{"a folder", mustArchive(t, tar.Header{Typeflag: tar.TypeDir, Name: "disk/image/"}), 1 << 20, backingimage.Invalid, "a folder"},
		{"half", good[:513], 1 << 20, backingimage.Corrupt, "truncated"},
		{"a flipped bit", append([]byte{good[0] ^ 1}, good[1:]...), 1 << 20, backingimage.Corrupt, "damaged"},
		{"a header of 2 MiB", retype(mustArchive(t, file("disk/"+strings.Repeat("x", 90)), file("disk/image")), tar.TypeXHeader, 2<<20, 3<<20), 4 << 20, backingimage.Corrupt, "damaged"},
		{"more than the limit", mustArchive(t, file("disk/image"), file("b"), file("c")), 2048, backingimage.OutOfRange, "limit of 2048"},
		{"text", bytes.Repeat([]byte("no archive "), 100), 1 << 20, backingimage.Corrupt, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := image(c.archive, "disk", c.most)
			if !backingimage.Is(err, c.kind) || !backingimage.Terminal(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v error %v, want %v with %q", backingimage.KindOf(err), err, c.kind, c.says)
			}
		})
	}
}
