package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"plinth.dev/plinth/backingimage"
)

// Archive is a tar archive that holds an image as the one file in a folder.
type Archive struct {
	reader *tar.Reader
	folder string // clean, with a slash before and none behind
	limit  *limited
	found  []string // in the folder, the image apart
}

// NewArchive reads an archive that came out of Open. maxBytes bounds all of it.
func NewArchive(r io.Reader, folder string, maxBytes int64) *Archive {
	l := &limited{Reader: r, left: maxBytes, most: maxBytes}
	return &Archive{reader: tar.NewReader(l), folder: path.Clean("/" + folder), limit: l}
}

// Image goes to the image and returns its reader and its size in bytes. When the folder has none it is Invalid, and says
// what is there instead.
func (a *Archive) Image() (io.Reader, int64, error) {
	header, err := a.next()
	if errors.Is(err, io.EOF) {
		return nil, 0, backingimage.Errorf(backingimage.Invalid, "the archive has no file in its folder %s%s; build it with the image as the one file there", a.folder, a.others())
	}
	if err != nil {
		return nil, 0, err
	}
	return member{a}, header.Size, nil
}

// member reads the file that the archive is at.
type member struct{ archive *Archive }

func (m member) Read(p []byte) (int, error) {
	n, err := m.archive.reader.Read(p)
	if err != nil {
		err = m.archive.explain(err)
	}
	return n, err
}

// End reads the rest of the archive, and what its packing has behind it, such as a checksum. A second file in the folder
// is Invalid.
func (a *Archive) End() error {
	header, err := a.next()
	if errors.Is(err, io.EOF) {
		_, err = io.Copy(io.Discard, a.limit)
		return err
	}
	if err != nil {
		return err
	}
	return backingimage.Errorf(backingimage.Invalid, "the archive has several files in its folder %s, among them %s; build it with the image as the one file there", a.folder, clip(path.Base(header.Name)))
}

// next goes to the next regular file in the folder; io.EOF when there is none.
func (a *Archive) next() (*tar.Header, error) {
	for {
		header, err := a.reader.Next()
		if err != nil {
			return nil, a.explain(err)
		}
		name := path.Clean("/" + header.Name)
		switch {
		case path.Dir(name) != a.folder || strings.HasPrefix(path.Base(name), whiteout):
		case header.Typeflag == tar.TypeReg:
			return header, nil
		default:
			a.note(fmt.Sprintf("%s, %s", clip(path.Base(name)), kindOf(header.Typeflag)))
		}
	}
}

// whiteout begins the names by which a layer of a container image removes files of the layers below.
const whiteout = ".wh."

// explain gives a damaged archive its Kind; what the reader below says passes.
func (a *Archive) explain(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return err
	case a.limit.err != nil:
		return a.limit.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return backingimage.Errorf(backingimage.Corrupt, "the tar archive is truncated; publish it anew")
	}
	return backingimage.Errorf(backingimage.Corrupt, "what should be a tar archive is none, or is damaged (%v); publish it anew", err)
}

// maxNoted bounds what a message lists.
const maxNoted = 4

func (a *Archive) note(what string) {
	if len(a.found) < maxNoted && !slices.Contains(a.found, what) {
		a.found = append(a.found, what)
	}
}

func (a *Archive) others() string {
	if len(a.found) == 0 {
		return ""
	}
	return " (there is " + strings.Join(a.found, "; ") + ")"
}

func kindOf(flag byte) string {
	switch flag {
	case tar.TypeLink, tar.TypeSymlink:
		return "a link"
	case tar.TypeDir:
		return "a folder"
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return "a device"
	case tar.TypeGNUSparse:
		return "a sparse entry; build the archive without --sparse"
	}
	return fmt.Sprintf("an entry of type %q", flag)
}

// clip makes a name from an archive fit to be shown.
func clip(name string) string {
	if len(name) > 80 {
		name = name[:80] + "…"
	}
	return fmt.Sprintf("%q", name)
}

// limited ends a reader with OutOfRange after so many bytes.
type limited struct {
	io.Reader
	left, most int64
	err        error // other than io.EOF
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		l.err = backingimage.Errorf(backingimage.OutOfRange, "the archive has more than the limit of %d bytes when it is unpacked; use a smaller one or have the limit raised", l.most)
		return 0, l.err
	}
	n, err := l.Reader.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		l.err = err
	}
	return n, err
}
