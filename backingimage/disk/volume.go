package disk

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// VolumeIDs are the volumes on the disk, sorted, whoever made them.
func (d *Disk) VolumeIDs() ([]string, error) { return names(d.layout.Volumes(), "") }

// SnapshotIDs are the snapshots on the disk, sorted, whoever made them.
func (d *Disk) SnapshotIDs() ([]string, error) { return names(d.layout.Snapshots(), "") }

// ReceiptIDs are the volumes whose content arrives from another disk, or did when the agent was killed, sorted.
func (d *Disk) ReceiptIDs() ([]string, error) { return names(d.layout.Staging(), receiptPrefix) }

// UsedBytes are allocated to the files in a directory, as far as they can be read; what they share with others is counted in full.
func UsedBytes(dir string) int64 {
	used := int64(0)
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return nil // what vanishes or cannot be read counts nothing
		}
		if info, err := os.Lstat(path); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				used += st.Blocks * 512
			}
		}
		return nil
	})
	return used
}
