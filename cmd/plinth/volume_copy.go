package main

import (
	"context"
	"fmt"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// copyRequest is what `volume clone` and `snapshot restore` ask for: a volume that has another one's content.
type copyRequest struct {
	volume  volumeRequest
	output  output
	wait    bool
	timeout time.Duration
}

func (r *copyRequest) addFlags(c *cli, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.volume.size, "size", "", "`size`, like 10Gi; its filesystem grows to it at the next mount (default: the source's)")
	f.StringVar(&r.volume.node, "node", "", "`node` that the volume is on; what is on another one comes from there (default: the source's, where it costs nothing)")
	f.StringVar(&r.volume.class, "storage-class", "", "`file` with a Kubernetes StorageClass whose parameters to use")
	f.StringArrayVar(&r.volume.parameters, "parameter", nil, "StorageClass parameter `key=value`; may be repeated; wins over the file's")
	f.BoolVar(&r.wait, "wait", true, "return when the volume is ready")
	f.DurationVar(&r.timeout, "timeout", defaultImageTimeout, "with --wait: how long to wait; the work goes on after it")
	r.output.addFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("node", nodes.complete(c)) // fails only for a flag that is not there
}

func newVolumeCloneCommand(c *cli) *cobra.Command {
	r := copyRequest{}
	cmd := &cobra.Command{
		Use:   "clone VOLUME NAME",
		Short: "Make a volume with another one's content",
		Long: "Clone makes a volume that has, and then changes by itself, what another volume has at this moment. On the same disk it shares the\n" +
			"blocks; to another disk or node the data is copied, and mounting waits for that. The same command again finds the clone it made.",
		Example:           "  plinth volume clone web-1 web-2\n  plinth volume clone web-1 web-3 --node node-2 --size 40Gi",
		Args:              program.Exactly("VOLUME", "NAME"),
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.volume.name = args[1]
			return c.copyVolume(cmd.Context(), r, func(ctx context.Context, client *store.Client) (*csispec.VolumeContentSource, error) {
				v, err := findVolume(ctx, client, args[0])
				if err != nil {
					return nil, err
				}
				return &csispec.VolumeContentSource{Type: &csispec.VolumeContentSource_Volume{Volume: &csispec.VolumeContentSource_VolumeSource{VolumeId: v.Name}}}, nil
			})
		},
	}
	r.addFlags(c, cmd)
	return cmd
}

func newSnapshotRestoreCommand(c *cli) *cobra.Command {
	r := copyRequest{}
	cmd := &cobra.Command{
		Use:   "restore SNAPSHOT VOLUME",
		Short: "Make a volume from a snapshot",
		Long: "Restore makes a new volume of what a snapshot has, by its name or its handle (snap://…, bi://…). On the snapshot's disk it shares the\n" +
			"blocks; to another disk or node the data is copied, and mounting waits for that. The volume that the snapshot was taken of is left alone.",
		Example:           "  plinth snapshot restore before-upgrade web-1-old\n  plinth snapshot restore snap://web-1/before-upgrade web-1-old --node node-2",
		Args:              program.Exactly("SNAPSHOT", "VOLUME"),
		ValidArgsFunction: snapshots.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.volume.name = args[1]
			return c.copyVolume(cmd.Context(), r, func(ctx context.Context, client *store.Client) (*csispec.VolumeContentSource, error) {
				handle, err := findSnapshot(ctx, client, args[0])
				if err != nil {
					return nil, err
				}
				return &csispec.VolumeContentSource{Type: &csispec.VolumeContentSource_Snapshot{Snapshot: &csispec.VolumeContentSource_SnapshotSource{SnapshotId: handle}}}, nil
			})
		},
	}
	r.addFlags(c, cmd)
	return cmd
}

// copyVolume makes a volume of what source finds.
func (c *cli) copyVolume(ctx context.Context, r copyRequest, source func(context.Context, *store.Client) (*csispec.VolumeContentSource, error)) error {
	request, err := r.volume.csi()
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	if request.VolumeContentSource, err = source(ctx, client); err != nil {
		return err
	}
	driver, err := c.dialCSI(ctx)
	if err != nil {
		return err
	}
	defer driver.close()
	answer, err := driver.controller.CreateVolume(ctx, request)
	if err != nil {
		return csiError(ctx, err)
	}
	id := answer.GetVolume().GetVolumeId()
	if r.wait {
		if err := c.waitForVolume(ctx, client, id, r.timeout); err != nil {
			return err
		}
	}
	v, err := volumes.get(ctx, client, id)
	if err != nil {
		return err
	}
	return r.output.print(c.out, v, []string{v.Name}, func() error {
		_, err := fmt.Fprintf(c.out, "volume %s created (%s, on %s)\n", r.volume.name, sizeText(volumeBytes(v)), v.Spec.NodeName)
		return err
	})
}
