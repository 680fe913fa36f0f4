package provisioner

import (
	"context"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/node"
)

var _ node.Exporter = (*Engines)(nil)

// Export implements node.Exporter with the engine of the volume's disk.
func (e *Engines) Export(ctx context.Context, disk, volume, path string) error {
	found, mine := e.of(disk)
	if !mine {
		return backingimage.Errorf(backingimage.Precondition, "export volume %s: disk %s is not one of this node", volume, disk)
	}
	return found.Export(ctx, volume, path)
}
