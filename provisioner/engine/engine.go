// Package engine is the contract between a volume's life and the storage that makes volumes: an Engine works on
// one disk and knows nothing of objects, requests or mounts. The reflink engine beside it is the first; enginetest
// is the suite that every engine passes.
//
// Every method is safe to repeat and safe to kill: repeating a call that succeeded succeeds, and a call that was
// killed anywhere is completed, or undone, by calling it again.
package engine

import (
	"context"
	"os"
	"time"
)

// Engine makes, attaches and removes the volumes of one disk, and their snapshots. A volume's or snapshot's ID is a DNS-1123 label
// or subdomain, so it is safe as a file name; anything else is Invalid. Calls for one ID exclude each other; calls for different IDs do not.
type Engine interface {
	// Create makes an empty volume that reads as zeros. When it exists with that size it does nothing; with another
	// size it is Conflict. Full when the disk has no room.
	Create(ctx context.Context, v Volume) error

	// Clone makes a volume whose first bytes are those of from, copy-on-write, and whose rest reads as zeros. Its cost
	// grows with from's extents, not with its size. OutOfRange when v.Bytes is less than from's size; NotFound when
	// there is no from. When the volume exists with that size and origin it does nothing; otherwise Conflict.
	Clone(ctx context.Context, v Volume, from From) error

	// Import is Clone where from is on another disk: its content is in a file at a path on the volume's disk, which is left as it
	// is. NotFound when there is no such file.
	Import(ctx context.Context, v Volume, from From, path string) error

	// Fill makes a volume whose content comes from elsewhere, by and by. It gives fill a file on the volume's disk, v.Bytes long, that has
	// the content of from, an image, and zeros behind it, or with From{} zeros alone. What fill wrote stays when it fails or is killed: the next
	// Fill of the volume gives the file again, says so with again, and only a Delete removes it. When fill returns nil the file becomes
	// the volume. A volume that exists with that size and origin is left alone; otherwise Conflict. NotFound when there is no image;
	// OutOfRange when it is larger; Full.
	Fill(ctx context.Context, v Volume, from From, fill func(f *os.File, again bool) error) error

	// Delete removes a volume and everything of it, what a killed Create, Clone or Fill left included. No such volume is
	// success. InUse while it is attached and held open.
	Delete(ctx context.Context, id string) error

	// Resize grows a volume to bytes, attached or not; an attached device shows the new size when Resize returns.
	// The same or a smaller size than it has does nothing. NotFound; Full.
	Resize(ctx context.Context, id string, bytes int64) error

	// Attach makes the volume a block device and returns its path. A second Attach returns the first's device, after
	// a restart of this process too. NotFound.
	Attach(ctx context.Context, id string, o AttachOptions) (device string, err error)

	// Detach removes the block device. Not attached, or no such volume, is success. InUse while something has it open
	// or mounted.
	Detach(ctx context.Context, id string) error

	// Export makes a file, at a path on the volume's disk, of the volume's whole content as it is at one moment, attached
	// or not. A filesystem that is mounted here from its device, or from a partition of it, is frozen for that moment: it
	// is clean in the file. Anything else is as a power loss would leave it. The file is sparse, its cost grows with the
	// volume's extents, and it needs the volume no longer; when Export returns it survives a power loss. After an error
	// or a kill there is no file at that path; a file that is there before is replaced. NotFound when there is no volume;
	// NotReady when the filesystem did not stay frozen; Full.
	Export(ctx context.Context, id, path string) error

	// Snapshot makes a snapshot of a volume: its content at one moment, as Export describes it, in a file of its own that the
	// volume's later life does not touch. Its cost grows with the volume's extents. When it exists, of that volume, it does
	// nothing; of another it is Conflict. NotFound when there is no volume; NotReady when the filesystem did not stay frozen; Full.
	Snapshot(ctx context.Context, s Snapshot) error

	// DeleteSnapshot removes a snapshot and everything of it, what a killed Snapshot left included. No such snapshot is success.
	// Volumes that were made from it stay as they are.
	DeleteSnapshot(ctx context.Context, id string) error

	// StatSnapshot returns what is on disk. NotFound.
	StatSnapshot(ctx context.Context, id string) (SnapshotInfo, error)

	// ListSnapshots returns every snapshot on the disk, sorted by ID. One that a killed call left half-made is not one.
	ListSnapshots(ctx context.Context) ([]SnapshotInfo, error)

	// Extents returns where the content of a snapshot or an image may differ from that of another, base, on the same disk, or,
	// without a base (From{}), where it may have data: it is zeros elsewhere. A base that is shorter is continued by zeros.
	// The extents are sorted, disjoint and not adjacent. Nothing is read to find them: they cost what the contents' extents do. In doubt
	// bytes count as different. NotFound; Invalid for a volume, whose content does not stay what it is.
	Extents(ctx context.Context, of, base From) ([]Extent, error)

	// Open opens the content of a snapshot or an image for reading. NotFound; Invalid for a volume.
	Open(ctx context.Context, of From) (*os.File, error)

	// Stat returns what is on disk. NotFound.
	Stat(ctx context.Context, id string) (Info, error)

	// List returns every volume on the disk, sorted by ID. A volume that a killed call left half-made is not one.
	List(ctx context.Context) ([]Info, error)

	// Capacity returns the disk's figures.
	Capacity(ctx context.Context) (Capacity, error)
}

// Volume is what Create and Clone make. It is stored with the data, so that a lost control plane can be rebuilt.
type Volume struct {
	ID    string `json:"id"`
	Bytes int64  `json:"bytes"` // size of the block device, in bytes; a multiple of 512
	Name  string `json:"name"`  // the orchestrator's name for it
}

// From names a content, such as a clone starts from; exactly one field is set.
type From struct {
	Image    string `json:"image,omitempty"`    // UID of a backing image whose copy is on this disk
	Volume   string `json:"volume,omitempty"`   // ID of a volume on this disk; its written-back state is what the clone gets
	Snapshot string `json:"snapshot,omitempty"` // ID of a snapshot on this disk
}

// Snapshot is what Snapshot makes. It is stored with the data.
type Snapshot struct {
	ID     string
	Volume string // ID of the volume
	Name   string // the orchestrator's name for it
}

// SnapshotInfo describes a snapshot on disk.
type SnapshotInfo struct {
	Snapshot
	Bytes     int64     // size of the volume at that moment
	Created   time.Time // the moment, or a little before it: everything that was written before is in it
	UsedBytes int64     // allocated, what it shares with its volume included
}

// Extent is a range of a content, in bytes.
type Extent struct{ Offset, Bytes int64 }

// AttachOptions of a block device.
type AttachOptions struct {
	ReadOnly bool
	// SectorBytes is the device's logical sector: 512, what partition tables in images are written for, or 4096. 0 leaves
	// it to the engine, which takes 512 unless the content is known to bear 4096.
	SectorBytes int
	// Partitions asks the kernel to scan the partition table; partition n is then device + "p" + n.
	Partitions bool
}

// Info describes a volume on disk.
type Info struct {
	Volume
	From      From
	UsedBytes int64  // allocated, what it shares with its image included
	Device    string // block device while attached, else ""
}

// Capacity of a disk in bytes.
type Capacity struct {
	TotalBytes     int64
	AvailableBytes int64
}
