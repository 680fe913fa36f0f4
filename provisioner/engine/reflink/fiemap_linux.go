package reflink

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is a piece of a file and where it is on the disk. Pieces that read as zeros have none.
type mapping struct {
	offset, bytes int64
	physical      int64
	known         bool // physical says where every one of its bytes is
}

func (m mapping) end() int64 { return m.offset + m.bytes }

// Of linux/fiemap.h.
const (
	fsIocFiemap = 0xc020660b // _IOWR('f', 11, struct fiemap)

	flagSync = 0x1

	extentLast      = 0x1
	extentUnwritten = 0x800
	// doubtful: UNKNOWN, DELALLOC, ENCODED (compressed: an address is that of a whole block of them), DATA_ENCRYPTED,
	// NOT_ALIGNED, DATA_INLINE and DATA_TAIL.
	doubtful = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
)

// fiemapExtent is struct fiemap_extent.
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// fiemapRequest is struct fiemap with room for extents.
type fiemapRequest struct {
	start, length       uint64
	flags, mapped, room uint32
	_                   uint32
	extents             [1024]fiemapExtent
}

// fiemap returns where the first bytes of a file are, in order, after what is cached was written.
func fiemap(ctx context.Context, f *os.File, bytes int64) ([]mapping, error) {
	var list []mapping
	r := new(fiemapRequest)
	for start, last := int64(0), false; start < bytes && !last; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		*r = fiemapRequest{start: uint64(start), length: uint64(bytes - start), room: uint32(len(r.extents))}
		if start == 0 {
			r.flags = flagSync
		}
		if err := ioctlFiemap(f, r); err != nil {
			return nil, os.NewSyscallError("FIEMAP", err)
		}
		if r.mapped == 0 {
			break
		}
		for _, x := range r.extents[:r.mapped] {
			from := max(int64(x.logical), start) // one that began before is told whole
			to := min(int64(x.logical+x.length), bytes)
			if x.flags&extentUnwritten == 0 && from < to {
				list = append(list, mapping{from, to - from, int64(x.physical) + from - int64(x.logical), x.flags&doubtful == 0})
			}
			start, last = max(start, int64(x.logical+x.length)), last || x.flags&extentLast != 0
		}
		if start == int64(r.start) && !last {
			return nil, fmt.Errorf("FIEMAP: it gives no extent after byte %d", start)
		}
	}
	return list, nil
}

var ioctlFiemap = func(f *os.File, r *fiemapRequest) error { // replaced in tests
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(r)))
	if errno != 0 {
		return errno
	}
	return nil
}
