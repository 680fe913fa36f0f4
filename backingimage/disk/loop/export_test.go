package loop

import (
	"testing"

	"golang.org/x/sys/unix"
)

// ReplaceConfigure puts f between Attach and the kernel until the test ends; f may call the real one.
func ReplaceConfigure(tb testing.TB, f func(real func(int, *unix.LoopConfig) error, fd int, c *unix.LoopConfig) error) {
	real := configure
	configure = func(fd int, c *unix.LoopConfig) error { return f(real, fd, c) }
	tb.Cleanup(func() { configure = real })
}

// ReplaceDevices looks for device nodes in another directory until the test ends.
func ReplaceDevices(tb testing.TB, dir string) {
	real := devices
	devices = dir
	tb.Cleanup(func() { devices = real })
}
