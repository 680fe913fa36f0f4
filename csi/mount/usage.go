package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Usage is how full a filesystem is, in bytes or in inodes. Available is what an unprivileged user can have.
type Usage struct{ Total, Used, Available int64 }

// UsageOf reads how full the filesystem is that is mounted on path.
func UsageOf(path string) (bytes, inodes Usage, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Usage{}, Usage{}, fmt.Errorf("read usage of %s: %w", path, err)
	}
	block := st.Bsize
	bytes = Usage{
		Total:     int64(st.Blocks) * block,
		Used:      int64(st.Blocks-st.Bfree) * block,
		Available: int64(st.Bavail) * block,
	}
	inodes = Usage{Total: int64(st.Files), Used: int64(st.Files - st.Ffree), Available: int64(st.Ffree)}
	return bytes, inodes, nil
}
