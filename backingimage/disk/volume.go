package disk

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// readerSuffix ends the IDs of volumes that are clones for reading, which an orchestrator's names of volumes cannot.
const readerSuffix = ".reader"

// ReaderID is the ID on this disk of the clone that a volume for many readers is read from. It has nothing that the image's copy has not, so
// that it may be removed whenever it is not in use.
func ReaderID(volume string) string { return volume + readerSuffix }

// ReaderOf returns the volume whose clone for reading the ID is, and whether it is one.
func ReaderOf(id string) (volume string, is bool) { return strings.CutSuffix(id, readerSuffix) }

// VolumeIDs are the volumes on the disk, sorted, whoever made them.
func (d *Disk) VolumeIDs() ([]string, error) { return names(d.layout.Volumes(), "") }

// SnapshotIDs are the snapshots on the disk, sorted, whoever made them.
func (d *Disk) SnapshotIDs() ([]string, error) { return names(d.layout.Snapshots(), "") }

// ReceiptIDs are the volumes whose content arrives from another disk, or did when the agent was killed, sorted.
func (d *Disk) ReceiptIDs() ([]string, error) { return names(d.layout.Staging(), receiptPrefix) }

// StagedFillIDs are the volumes whose content is on its way, or was when the agent was killed, sorted.
func (d *Disk) StagedFillIDs() ([]string, error) { return names(d.layout.Staging(), fillPrefix) }

// RemoveStagedFill removes what came of a volume's content. The volume itself stays, if there is one.
func (d *Disk) RemoveStagedFill(id string) error {
	if err := CheckName("volume ID", id); err != nil {
		return err
	}
	return d.layout.Remove(d.layout.StagedFill(id))
}

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
