package loop

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lock excludes other changes to the file's device, in this process and in others.
//
// The lock has a descriptor of its own and must never be taken on the one that the device is bound to: a flock
// belongs to the open file, and the driver keeps that open for as long as the device lives.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { release(f) }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, os.NewSyscallError("flock", err)
		}
		if err := sleep(ctx, pause); err != nil {
			f.Close()
			return nil, err
		}
	}
}

// release unlocks explicitly: closing is not enough while a child between fork and exec holds a copy of the descriptor.
func release(f *os.File) {
	unix.Flock(int(f.Fd()), unix.LOCK_UN)
	f.Close()
}
