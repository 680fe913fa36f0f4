package backup_test

import (
	"os"
	"syscall"
	"testing"
)

// allocated is how much room a file takes, in bytes.
func allocated(tb testing.TB, f *os.File) int64 {
	tb.Helper()
	info, err := f.Stat()
	must(tb, err)
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
