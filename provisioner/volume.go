package provisioner

import (
	"context"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
)

// CreateRequest asks for a volume, in domain words.
type CreateRequest struct {
	Name          string            // the orchestrator's name; the same name means the same volume
	RequiredBytes int64             // at least this size; 0: the image's, or DefaultBytes without an image
	LimitBytes    int64             // at most this size; 0: no limit
	Parameters    map[string]string // the StorageClass's
	SourceVolume  string            // ID of the volume to clone; "" for none
	SourceHandle  string            // of the snapshot to start from; "" for none
	Nodes         []string          // nodes it may be on, in order of preference; empty: any
	ReadOnlyMany  bool              // for reading on any number of nodes at once; it begins as an image and stays that
	// Secrets are the content of the class's provisioner secret, with which an image is downloaded on demand.
	Secrets map[string]credential.Secret
}

// Controller is the cluster's side of the lives of volumes and snapshots. All methods are safe to repeat; errors carry a
// backingimage.Kind and a message that is complete.
type Controller interface {
	Snapshots
	// Create decides where the volume goes, writes it and returns without waiting for its data. An equal volume of
	// that name is returned as it is; a different one is Conflict and the message names the difference.
	Create(ctx context.Context, r CreateRequest) (*v1alpha1.Volume, error)
	// Released returns a volume when it needs no longer that what it is made from stays what it is. NotReady.
	Released(ctx context.Context, v *v1alpha1.Volume) (*v1alpha1.Volume, error)
	// Delete removes the volume and returns when its file is gone; a volume that does not exist is success. InUse while
	// it is attached.
	Delete(ctx context.Context, id string) error
	// Expand grows the block device and returns its new size in bytes; a smaller size than it has does nothing.
	// OutOfRange when the limit is below what it has, NotFound, Full.
	Expand(ctx context.Context, id string, requiredBytes, limitBytes int64) (int64, error)
	// Get returns a volume. NotFound.
	Get(ctx context.Context, id string) (*v1alpha1.Volume, error)
	// List returns all volumes, sorted by ID.
	List(ctx context.Context) ([]*v1alpha1.Volume, error)
	// Capacity returns the bytes that new volumes with these parameters can have on the node ("" for all nodes), and
	// the size of the largest single one.
	Capacity(ctx context.Context, parameters map[string]string, node string) (available, largest int64, err error)
}

// Node is one machine's side of a volume's life.
type Node interface {
	// Attach waits until the volume is ready here, then makes it a block device. It is NotReady, with the reason and
	// the progress, when ctx ends first; a failure that waiting cannot mend answers at once with its cause. NotFound
	// when there is no such volume; Precondition when it is on another node. Before the caller says that it is done, it asks
	// Recorded of what it got.
	Attach(ctx context.Context, id string) (Attached, error)
	// Detach removes the block device; not attached or no such volume is success. InUse while it is held open.
	Detach(ctx context.Context, id string) error
	// Attached returns the block device of an attached volume; Precondition when it is not attached, NotFound.
	Attached(ctx context.Context, id string) (Attached, error)
	// Condition says whether the volume is well: abnormal with a message when its file or device is damaged or gone.
	Condition(ctx context.Context, id string) (abnormal bool, message string)
	// Name of this node, as in topology.plinth.dev/node.
	Name() string
}

// Attached is a volume that is a block device here.
type Attached struct {
	Volume   *v1alpha1.Volume
	Device   string // the whole device, e.g. /dev/loop3
	ReadOnly bool   // the device cannot be written, nor made to
	// FilesystemDevice is what Filesystem mode mounts: Device, or the partition that the class names.
	FilesystemDevice string

	recorded func() error // nil: there is nothing to wait for
}

// Recorded waits until everybody can see that the volume is attached, which keeps it from being deleted. That takes as long as much of what there is
// to do with the device meanwhile.
func (a Attached) Recorded() error {
	if a.recorded == nil {
		return nil
	}
	return a.recorded()
}
