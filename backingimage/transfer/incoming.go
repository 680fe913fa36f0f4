package transfer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/tus/tusd/v2/pkg/handler"
	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/disk/direct"
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

// holeBytes is the size, and the alignment, of the blocks of zeros that are left out.
const holeBytes = 64 << 10

// WriteChunk implements handler.Upload: it appends what a request brings, until that ends. While one piece is written the
// next arrives.
func (in *incoming) WriteChunk(_ context.Context, offset int64, from io.Reader) (int64, error) {
	f, err := os.OpenFile(in.upload.file(), os.O_WRONLY, 0o600)
	if in.used(err) {
		return 0, nil
	}
	if err != nil {
		return 0, tusError(err)
	}
	defer f.Close()
	w := &sparseFile{file: f, direct: direct.NewWriter(f), at: offset}
	defer w.direct.Close()
	belt, stopped, writeErr := newBelt(), make(chan struct{}), error(nil)
	go func() {
		defer close(stopped)
		writeErr = in.write(w, belt)
	}()
	err = belt.fill(stopped, offset, from)
	<-stopped
	if writeErr != nil {
		return w.at - offset, in.failed(writeErr)
	}
	return w.at - offset, err
}

// write writes what is on the belt, and keeps the last of it in memory for who reads behind.
func (in *incoming) write(w *sparseFile, b *belt) error {
	defer in.upload.forget()
	for p := range b.full {
		in.metrics.received.Add(float64(len(p.data)))
		if err := in.upload.append(in.nonce, p, func() (int64, error) { err := w.write(p.data); return w.at, err }); err != nil {
			return err
		}
		for _, buffer := range in.upload.spare() {
			b.free <- buffer
		}
	}
	return nil
}

// used reports whether there is no file because all had come and was made an image, even before the last request ended.
func (in *incoming) used(err error) bool {
	in.upload.mu.Lock()
	defer in.upload.mu.Unlock()
	return errors.Is(err, fs.ErrNotExist) && in.upload.dropped && in.upload.offset == in.upload.bytes
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
	if in.used(err) {
		return nil
	}
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
	file   *os.File
	direct *direct.Writer // to the file
	at     int64          // its size
}

// write appends p; at counts what was appended, also beside an error.
func (s *sparseFile) write(p []byte) error {
	for len(p) > 0 {
		zeros, data := s.run(p, true), 0
		if zeros == 0 {
			data = s.run(p, false)
			if _, err := s.direct.WriteAt(p[:data], s.at); err != nil {
				return err
			}
		} else if zeros == len(p) {
			if err := s.file.Truncate(s.at + int64(zeros)); err != nil { // the file ends in a hole
				return err
			}
		}
		p, s.at = p[zeros+data:], s.at+int64(zeros+data)
	}
	return nil
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
