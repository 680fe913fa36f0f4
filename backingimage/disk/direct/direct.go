// Package direct writes large files past the page cache. Copying gigabytes into it costs more processor time than all the
// hashing of them (the kernel has to find, and clear or fault in, a page for each 4 KiB), and pushes out of memory what
// programs still need; and images are read by loop devices, which do not use it either.
package direct

import (
	"errors"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Block is the alignment, in bytes, of offsets, lengths and memory that direct I/O is done with. Filesystems ask for their
// sector's, and for 4096 where files share extents.
const Block = 4096

// Buffer makes memory of so many bytes that direct I/O can be done from.
func Buffer(bytes int) []byte {
	b := make([]byte, bytes+Block)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) % Block)
	return b[skip : skip+bytes : skip+bytes]
}

// Writer writes to a file directly what is aligned, and the rest as usual. Where a filesystem knows no direct I/O,
// everything is written as usual. It is safe for concurrent use.
type Writer struct {
	file    *os.File
	direct  *os.File // nil: as usual
	refused atomic.Bool
}

// NewWriter of an open file, which stays its caller's.
func NewWriter(file *os.File) *Writer {
	d, err := os.OpenFile(file.Name(), os.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		d = nil
	}
	return &Writer{file: file, direct: d}
}

// WriteAt implements io.WriterAt.
func (w *Writer) WriteAt(p []byte, at int64) (int, error) {
	n := w.aligned(p, at)
	if n > 0 {
		m, err := w.direct.WriteAt(p[:n], at)
		if refused(err) {
			w.refused.Store(true)
			m, err = w.file.WriteAt(p[:n], at)
		}
		if err != nil {
			return m, err
		}
	}
	if n == len(p) {
		return n, nil
	}
	m, err := w.file.WriteAt(p[n:], at+int64(n))
	return n + m, err
}

// aligned is how many bytes at p's beginning can be written directly.
func (w *Writer) aligned(p []byte, at int64) int {
	if w.direct == nil || w.refused.Load() || at%Block != 0 || len(p) < Block || uintptr(unsafe.Pointer(&p[0]))%Block != 0 {
		return 0
	}
	return len(p) / Block * Block
}

// refused reports whether the filesystem says that direct I/O is not to be had like that.
func refused(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) }

// Close gives up what NewWriter took; the file stays open.
func (w *Writer) Close() {
	if w.direct != nil {
		w.direct.Close()
	}
}
