// Package provisioner is the life of a volume in domain words: what a StorageClass asks for (Parameters), what must be
// true before a volume is written (the hooks), the decision and the object (Provisioner, a Controller), and on the
// node that holds the disk the loop that makes the volume's file (VolumeLoop) and attaches it (Attacher, a Node).
//
// CreateVolume's path: csi.Server → Idempotent → Provisioner.Create → hooks (source, image, size, place) → Volume object.
// From then on the image's copy on that disk is wanted; the volume loop clones when it is ready; NodeStage waits for
// that in Attacher.Attach. Nothing here speaks CSI.
//
// Snapshots are of three types (snapshotTypes), each kept by something else: a file on the volume's disk, which SnapshotLoop takes there;
// a backing image; a backup. A volume that is made of a snapshot, or of another volume, on the same disk is a clone. On another disk its
// content comes from there: of a volume a point in time is taken first (Points), Offers give it with a manifest, and receipts get it chunk
// by chunk, as agents get images.
//
// A claim whose source is a BackingImage is one that no provisioner sidecar takes on: the Populator has a claim stand in for it.
package provisioner
