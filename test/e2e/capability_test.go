package e2e

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mayGrowExt4 reports whether root has CAP_SYS_RESOURCE, without which a kernel refuses to grow a mounted ext4.
func mayGrowExt4() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if mask, ok := strings.CutPrefix(line, "CapBnd:\t"); ok {
			var bits uint64
			for _, digit := range strings.TrimSpace(mask) {
				bits = bits<<4 | uint64(strings.IndexRune("0123456789abcdef", digit))
			}
			return bits&(1<<unix.CAP_SYS_RESOURCE) != 0
		}
	}
	return true
}
