package transfer

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/manifest"
)

// incoming is an upload as tusd writes it: into tusd's own file, but sparse, in large pieces, and with a word to the
// fetch that reads behind.
type incoming struct {
	handler.Upload
	upload  *upload
	nonce   string
	metrics *Metrics
}

const (
	pieceBytes = 1 << 20                // written at once
	pieceTime  = 100 * time.Millisecond // how long a piece may wait to become whole
	holeBytes  = 64 << 10               // zeros that are left out, and their alignment
)

// WriteChunk implements handler.Upload: it appends what a request brings, until that ends.
func (in *incoming) WriteChunk(_ context.Context, offset int64, from io.Reader) (int64, error) {
	f, err := os.OpenFile(in.upload.file(), os.O_WRONLY, 0o600)
	if err != nil {
		return 0, tusError(err)
	}
	defer f.Close()
	w := &sparseFile{file: f, at: offset, flushed: offset}
	buffer := make([]byte, pieceBytes)
	for {
		n, rerr := fillPiece(from, buffer)
		if err := in.add(w, buffer[:n]); err != nil {
			return w.at - offset, in.failed(err)
		}
		if errors.Is(rerr, io.EOF) {
			return w.at - offset, nil
		}
		if rerr != nil {
			return w.at - offset, rerr
		}
	}
}

func (in *incoming) add(w *sparseFile, piece []byte) error {
	if len(piece) == 0 {
		return nil
	}
	in.metrics.received.Add(float64(len(piece)))
	return in.upload.append(in.nonce, func() (int64, error) { err := w.write(piece); return w.at, err })
}

// failed tells the reader why nothing more comes, when it is the disk's fault.
func (in *incoming) failed(err error) error {
	told := tusError(err)
	var e handler.Error
	if errors.As(told, &e) && e.ErrorCode == backingimage.Full.String() {
		in.upload.change(func() { in.upload.fault = backingimage.Errorf(backingimage.Full, "%s", e.Message) })
	}
	return told
}

// fillPiece reads until p is full, or has waited long enough.
func fillPiece(from io.Reader, p []byte) (n int, err error) {
	began := time.Now()
	for n < len(p) && err == nil {
		var m int
		m, err = from.Read(p[n:])
		n += m
		if time.Since(began) > pieceTime {
			break
		}
	}
	return n, err
}

// DeclareLength implements handler.LengthDeclarableUpload.
func (in *incoming) DeclareLength(ctx context.Context, bytes int64) error {
	info, err := in.GetInfo(ctx)
	if err != nil {
		return err
	}
	info.Size, info.SizeIsDeferred = bytes, false
	if err := saveInfo(in.upload, info); err != nil {
		return tusError(err)
	}
	in.upload.change(func() { in.upload.bytes = bytes })
	return nil
}

// FinishUpload implements handler.Upload: what is complete survives a power loss.
func (in *incoming) FinishUpload(context.Context) error {
	f, err := os.OpenFile(in.upload.file(), os.O_WRONLY, 0o600)
	if err != nil {
		return tusError(err)
	}
	defer f.Close()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return tusError(err)
	}
	return nil
}

// sparseFile is appended to, holes for zeros.
type sparseFile struct {
	file    *os.File
	at      int64 // its size
	flushed int64 // up to where the disk was told to write
}

// write appends p; at counts what was appended, also beside an error.
func (s *sparseFile) write(p []byte) error {
	for len(p) > 0 {
		zeros, data := s.run(p, true), 0
		if zeros == 0 {
			data = s.run(p, false)
			if _, err := s.file.WriteAt(p[:data], s.at); err != nil {
				return err
			}
		} else if zeros == len(p) {
			if err := s.file.Truncate(s.at + int64(zeros)); err != nil { // the file ends in a hole
				return err
			}
		}
		p, s.at = p[zeros+data:], s.at+int64(zeros+data)
	}
	s.beginFlush()
	return nil
}

// flushBytes is how much is written before the disk is told to begin with it. Whoever shares the file's extents has to wait
// for the disk: that wait is short when the disk is ahead of him.
const flushBytes = 4 << 20

// beginFlush makes the kernel write what is dirty, without waiting for that. It is a wish.
func (s *sparseFile) beginFlush() {
	if s.at-s.flushed >= flushBytes {
		_ = unix.SyncFileRange(int(s.file.Fd()), s.flushed, s.at-s.flushed, unix.SYNC_FILE_RANGE_WRITE)
		s.flushed = s.at
	}
}

// run is how many bytes at p's beginning are whole blocks of zeros, or anything else up to such a block.
func (s *sparseFile) run(p []byte, zero bool) int {
	n := 0
	for n < len(p) {
		block := min(int(holeBytes-(s.at+int64(n))%holeBytes), len(p)-n)
		if (block == holeBytes && manifest.AllZero(p[n:n+block])) != zero {
			break
		}
		n += block
	}
	return n
}
