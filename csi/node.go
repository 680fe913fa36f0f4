package csi

import (
	"context"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/csi/mount"
	"plinth.dev/plinth/provisioner"
)

// node serves the Node service. It keeps no state: what is staged and published is what the kernel has mounted.
type node struct {
	csi.UnimplementedNodeServer
	volumes  provisioner.Node
	stopping context.Context // ends when the server begins to stop, so that no call waits any longer
}

func (n *node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{Capabilities: nodeCapabilities()}, nil
}

func (n *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.volumes.Name(), AccessibleTopology: topologyOf(n.volumes.Name())}, nil
}

// readerOnly reports whether a capability promises not to write.
func readerOnly(c *csi.VolumeCapability) bool {
	return c.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY || forManyReaders(c)
}

// filesystemsOf lists where the volume's filesystem is mounted; nowhere when the partition that holds it is not there.
func filesystemsOf(a provisioner.Attached) ([]mount.Point, error) {
	d, err := mount.Inspect(a.FilesystemDevice)
	if backingimage.Is(err, backingimage.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	points, err := mount.Showing(d)
	if err != nil {
		return nil, err
	}
	var list []mount.Point
	for _, p := range points {
		if p.Device == d.ID {
			list = append(list, p)
		}
	}
	return list, nil
}

// without returns the mounts that are not on one of the paths.
func without(points []mount.Point, paths ...string) ([]mount.Point, error) {
	omit := map[string]bool{}
	for _, path := range paths {
		resolved, err := mount.Resolve(path)
		if err != nil {
			return nil, err
		}
		omit[resolved] = true
	}
	var list []mount.Point
	for _, p := range points {
		if !omit[p.Path] {
			list = append(list, p)
		}
	}
	return list, nil
}

// pathsOf names mounts for a message.
func pathsOf(points []mount.Point) string {
	var paths []string
	for _, p := range points {
		paths = append(paths, p.Path)
	}
	return strings.Join(paths, ", ")
}
