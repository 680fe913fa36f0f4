// Package unpack opens what an image comes packed in: gzip, xz, zstd and bzip2, and the tar archives of container images.
//
// Everything here is a reader over a reader, so that unpacking runs beside the download that feeds it, and everything is
// hostile. Memory is bounded whatever a header asks for: a window or dictionary of 128 MiB at the most, which is what the
// standard tools' strongest settings use. How much comes out is for the caller to bound. A decoder runs in
// the goroutine of its reader and starts none, so that whoever guards that goroutine against panics guards the decoder.
//
// Several members, streams or frames behind one another are one content, as they are for the standard tools, and what the
// tools ignore behind the last one is ignored: anything after gzip and bzip2, padding after xz, skippable frames of zstd.
// What they refuse is refused: anything else after xz and zstd.
package unpack

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
)

// maxWindowBytes bounds the memory of a decoder: "xz -9" uses 64 MiB, "zstd --ultra -22" 128 MiB.
const maxWindowBytes = 128 << 20

// inputBytes is how much is read at once.
const inputBytes = 256 << 10

// Open unpacks r, which is in the named packing of package format. Its reader's errors are r's own as they are; Corrupt,
// when the packed file is damaged or ends too early; Unsupported, when unpacking needs too much memory or something that
// we do not have.
func Open(name string, r io.Reader) (io.Reader, error) {
	in := &input{Reader: r}
	u := &unpacked{name: name, input: in}
	buffered := bufio.NewReaderSize(in, inputBytes)
	var err error
	switch name {
	case format.Tar:
		u.decoder = buffered
	case format.GZip:
		u.decoder, err = newMembers(buffered)
	case format.Zstd:
		u.decoder, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindowBytes), zstd.WithDecoderLowmem(true))
	case format.XZ:
		u.decoder, err = xz.NewReader(buffered, maxWindowBytes)
	case format.BZip2:
		u.decoder = bzip2.NewReader(buffered)
	default:
		return nil, fmt.Errorf("unpack: %q is no packing", name)
	}
	if err != nil {
		return nil, u.explain(err)
	}
	return u, nil
}

// Size is how many bytes come out, by what the first bytes of a packed file say; -1 when they do not. Files of several frames
// say less than the truth, so that it is a hint.
func Size(name string, head []byte) int64 {
	var h zstd.Header
	if name != format.Zstd || h.Decode(head) != nil || h.Skippable || !h.HasFCS || h.FrameContentSize > 1<<62 {
		return -1
	}
	return int64(h.FrameContentSize)
}

// input remembers its reader's error, to tell it from a decoder's.
type input struct {
	io.Reader
	err error
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		i.err = err
	}
	return n, err
}

// unpacked is a decoder whose errors have Kinds.
type unpacked struct {
	name    string
	input   *input
	decoder io.Reader
	err     error
}

func (u *unpacked) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	n, err := u.decoder.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = u.explain(err)
	}
	u.err = err
	return n, err
}

// trailing is the error of compress/bzip2 for what follows the last stream and is no stream; bzip2 ignores it.
const trailing = bzip2.StructuralError("bad magic value in continuation file")

func (u *unpacked) explain(err error) error {
	switch {
	case u.input.err != nil:
		return u.input.err
	case errors.Is(err, trailing):
		return io.EOF
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, xz.ErrMemlimit):
		return backingimage.Errorf(backingimage.Unsupported, "unpacking the %s file needs a window or dictionary of more than %s; compress it with a smaller one", u.name, backingimage.SizeText(maxWindowBytes))
	case errors.Is(err, xz.ErrOptions), errors.Is(err, xz.ErrUnsupportedCheck), errors.Is(err, zstd.ErrUnknownDictionary):
		return backingimage.Errorf(backingimage.Unsupported, "the %s file is compressed in a way that is not supported (%v); compress it with the tool's defaults", u.name, err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, xz.ErrBuf):
		return backingimage.Errorf(backingimage.Corrupt, "the %s file is truncated: it ends in the middle of its data; publish it anew", u.name)
	}
	return backingimage.Errorf(backingimage.Corrupt, "the %s file is damaged (%v); publish it anew", u.name, err)
}

const gzipMagic = "\x1f\x8b"

// members reads the members of a gzip file. What follows the last of them and is none is ignored, as gzip does.
type members struct {
	in  *bufio.Reader
	one *gzip.Reader
}

func newMembers(in *bufio.Reader) (*members, error) {
	one, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	one.Multistream(false)
	return &members{in: in, one: one}, nil
}

func (m *members) Read(p []byte) (int, error) {
	n, err := m.one.Read(p)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	magic, err := m.in.Peek(len(gzipMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	if string(magic) != gzipMagic {
		return n, io.EOF
	}
	if err := m.one.Reset(m.in); errors.Is(err, io.EOF) {
		return n, io.ErrUnexpectedEOF
	} else if err != nil {
		return n, err
	}
	m.one.Multistream(false)
	return n, nil
}
