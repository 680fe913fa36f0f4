package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// csiClient speaks to a CSI socket as an orchestrator does.
type csiClient struct {
	conn       *grpc.ClientConn
	controller csispec.ControllerClient
	node       csispec.NodeClient
}

// dialCSI connects to the socket of the flag and makes sure that a driver answers there.
func (c *cli) dialCSI(ctx context.Context) (*csiClient, error) {
	path, ok := strings.CutPrefix(c.csiEndpoint, "unix://")
	if !ok || !strings.HasPrefix(path, "/") {
		return nil, backingimage.Errorf(backingimage.Invalid, "--csi-endpoint: %q is not a Unix socket; write it like unix:///run/plinth/csi.sock", c.csiEndpoint)
	}
	probe, err := new(net.Dialer).DialContext(ctx, "unix", path) // its errors are clearer than the client's
	if err != nil {
		return nil, backingimage.Errorf(backingimage.NotReady, "no CSI driver answers at %s: %w; is `plinth standalone` running, and is this its --csi-endpoint?", c.csiEndpoint, err)
	}
	_ = probe.Close()                                                            // nothing was sent
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) // what fails is this command's to say, once
	conn, err := grpc.NewClient(c.csiEndpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, backingimage.Errorf(backingimage.Invalid, "--csi-endpoint: %w", err)
	}
	if _, err := csispec.NewIdentityClient(conn).GetPluginInfo(ctx, &csispec.GetPluginInfoRequest{}); err != nil {
		_ = conn.Close() // every call has been answered
		return nil, csiError(ctx, err)
	}
	return &csiClient{conn: conn, controller: csispec.NewControllerClient(conn), node: csispec.NewNodeClient(conn)}, nil
}

func (c *csiClient) close() { _ = c.conn.Close() } // every call has been answered

// reachVolume finds a volume and connects to the driver, which the caller closes.
func (c *cli) reachVolume(ctx context.Context, name string) (*store.Client, *v1alpha1.Volume, *csiClient, error) {
	client, err := c.client()
	if err != nil {
		return nil, nil, nil, err
	}
	v, err := findVolume(ctx, client, name)
	if err != nil {
		return nil, nil, nil, err
	}
	driver, err := c.dialCSI(ctx)
	return client, v, driver, err
}

// deleteEach has remove delete what each name stands for, and tells of each.
func (c *cli) deleteEach(ctx context.Context, noun string, names []string, remove func(client *store.Client, driver *csiClient, name string) error) error {
	client, err := c.client()
	if err != nil {
		return err
	}
	driver, err := c.dialCSI(ctx)
	if err != nil {
		return err
	}
	defer driver.close()
	for _, name := range names {
		if err := remove(client, driver, name); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s %s deleted\n", noun, name)
	}
	return nil
}

// kindOfCode is the table from gRPC codes back to Kinds; what is not in it is Internal.
var kindOfCode = map[codes.Code]backingimage.Kind{
	codes.InvalidArgument:    backingimage.Invalid,
	codes.OutOfRange:         backingimage.OutOfRange,
	codes.NotFound:           backingimage.NotFound,
	codes.AlreadyExists:      backingimage.Conflict,
	codes.FailedPrecondition: backingimage.Precondition,
	codes.ResourceExhausted:  backingimage.Full,
	codes.Aborted:            backingimage.Busy,
	codes.Unavailable:        backingimage.NotReady,
	codes.DeadlineExceeded:   backingimage.NotReady,
	codes.Unimplemented:      backingimage.Unsupported,
	codes.DataLoss:           backingimage.Corrupt,
}

// csiError is an RPC's error in our own words; the server's message is complete. ctx's own end stays ctx's error.
func csiError(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	if cause := ctx.Err(); cause != nil && (s.Code() == codes.Canceled || s.Code() == codes.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", s.Message(), cause)
	}
	return backingimage.Errorf(kindOfCode[s.Code()], "%s", s.Message())
}

// capability describes how a volume will be used: the block device itself, or a filesystem (fsType "" is the driver's
// choice).
func capability(block bool, fsType string, mode csispec.VolumeCapability_AccessMode_Mode) *csispec.VolumeCapability {
	v := &csispec.VolumeCapability{AccessMode: &csispec.VolumeCapability_AccessMode{Mode: mode}}
	if block {
		v.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
		return v
	}
	v.AccessType = &csispec.VolumeCapability_Mount{Mount: &csispec.VolumeCapability_MountVolume{FsType: fsType}}
	return v
}

// writerMode is the access mode for a volume on one node: as an orchestrator does, the one for several writers where the
// driver tells them apart.
func (c *csiClient) writerMode(ctx context.Context) (csispec.VolumeCapability_AccessMode_Mode, error) {
	r, err := c.node.NodeGetCapabilities(ctx, &csispec.NodeGetCapabilitiesRequest{})
	if err != nil {
		return 0, csiError(ctx, err)
	}
	for _, capable := range r.GetCapabilities() {
		if capable.GetRpc().GetType() == csispec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER {
			return csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, nil
		}
	}
	return csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, nil
}
