// Package disk is a place for copies and volumes: a directory on a filesystem that can reflink, identified by the
// UUID stored on it. Where the given directory cannot reflink, the disk lives in a pool: a sparse file formatted as XFS
// and loop-mounted. What is where on a disk is decided here and nowhere else.
package disk

import "path/filepath"

// Names of the files on a disk.
const (
	IdentityFile   = "plinth-disk.json" // the disk's UUID and format version
	ImageFile      = "image.raw"        // in an image's directory: the raw, sparse content
	ManifestFile   = "manifest"         // in an image's directory: chunk digests
	CopyFile       = "copy.json"        // in an image's directory: what the copy is
	DamagedFile    = "damaged"          // in an image's directory, while chunks of the content are known to be damaged: which
	VolumeFile     = "volume.raw"       // in a volume's directory: the content
	VolumeRecord   = "volume.json"      // in a volume's directory: what the volume is
	SnapshotFile   = "snapshot.raw"     // in a snapshot's directory: the content of a volume at one moment
	SnapshotRecord = "snapshot.json"    // in a snapshot's directory: what the snapshot is
)

// Layout is the root directory of a disk.
type Layout string

// Image is the directory of a finished copy, named by the image's UID. It exists only when the copy is complete.
func (l Layout) Image(uid string) string { return filepath.Join(string(l), "images", uid) }

// Images is the directory of all finished copies.
func (l Layout) Images() string { return filepath.Join(string(l), "images") }

// Volume is the directory of a volume, named by its ID. It exists only when the volume is complete.
func (l Layout) Volume(id string) string { return filepath.Join(string(l), "volumes", id) }

// Volumes is the directory of all volumes.
func (l Layout) Volumes() string { return filepath.Join(string(l), "volumes") }

// Snapshot is the directory of a snapshot, named by its ID. It exists only when the snapshot is complete.
func (l Layout) Snapshot(id string) string { return filepath.Join(string(l), "snapshots", id) }

// Snapshots is the directory of all snapshots.
func (l Layout) Snapshots() string { return filepath.Join(string(l), "snapshots") }

// StagedImage is where a copy is made before it is renamed to Image.
func (l Layout) StagedImage(uid string) string {
	return filepath.Join(string(l), "staging", "image-"+uid)
}

// StagedUpload is where the file of an image arrives that is uploaded.
func (l Layout) StagedUpload(uid string) string {
	return filepath.Join(string(l), "staging", "upload-"+uid)
}

// StagedVolume is where a volume is made before it is renamed to Volume.
func (l Layout) StagedVolume(id string) string {
	return filepath.Join(string(l), "staging", "volume-"+id)
}

// StagedFill is where a volume is made whose content comes from elsewhere. What is there is gone on with.
func (l Layout) StagedFill(id string) string {
	return filepath.Join(string(l), "staging", fillPrefix+id)
}

const fillPrefix = "fill-"

// StagedSnapshot is where a snapshot is made before it is renamed to Snapshot.
func (l Layout) StagedSnapshot(id string) string {
	return filepath.Join(string(l), "staging", "snapshot-"+id)
}

// StagedReceipt is where the content of a volume arrives that comes from another disk.
func (l Layout) StagedReceipt(volume string) string {
	return filepath.Join(string(l), "staging", receiptPrefix+volume)
}

const receiptPrefix = "received-"

// Frozen is the file that says which filesystems of a volume are held frozen, while some are; see package freeze.
func (l Layout) Frozen(id string) string {
	return filepath.Join(string(l), "staging", frozenPrefix+id)
}

const frozenPrefix = "frozen-"

// Staging is the directory of everything unfinished.
func (l Layout) Staging() string { return filepath.Join(string(l), "staging") }

// VolumesLock is the file by which processes exclude each other from one volume, or one snapshot.
func (l Layout) VolumesLock() string { return filepath.Join(string(l), "volumes.lock") }
