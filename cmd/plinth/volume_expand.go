package main

import (
	"context"
	"fmt"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
)

func newVolumeExpandCommand(c *cli) *cobra.Command {
	var size string
	var staging stagingRoot
	cmd := &cobra.Command{
		Use:               "expand NAME --size SIZE",
		Short:             "Grow a volume, and its filesystem when it is mounted here",
		Long:              "Expand grows the volume. A filesystem grows with it at once when it is mounted here with plinth volume mount, else at the next mount.",
		Args:              program.Exactly("NAME"),
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.expandVolume(cmd.Context(), args[0], size, staging)
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "new `size`, like 20Gi (required)")
	staging.addFlag(cmd)
	return cmd
}

func (c *cli) expandVolume(ctx context.Context, name, size string, staging stagingRoot) error {
	bytes, err := parseSize("--size", size)
	if err != nil {
		return err
	}
	if bytes == 0 {
		return backingimage.Errorf(backingimage.Invalid, "--size is missing: say how large the volume shall be, like --size 20Gi")
	}
	_, v, driver, err := c.reachVolume(ctx, name)
	if err != nil {
		return err
	}
	defer driver.close()
	answer, err := driver.controller.ControllerExpandVolume(ctx, &csispec.ControllerExpandVolumeRequest{
		VolumeId: v.Name, CapacityRange: &csispec.CapacityRange{RequiredBytes: bytes},
	})
	if err != nil {
		return csiError(ctx, err)
	}
	if answer.GetNodeExpansionRequired() {
		if err := driver.expandHere(ctx, v.Name, bytes, staging); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.out, "volume %s has %s\n", name, sizeText(answer.GetCapacityBytes()))
	return nil
}

// expandHere grows the filesystem of a volume that is mounted here; elsewhere the next mount does it.
func (c *csiClient) expandHere(ctx context.Context, id string, bytes int64, staging stagingRoot) error {
	if !staging.knows(id) {
		return nil
	}
	s, err := staging.open(id)
	if err != nil {
		return err
	}
	defer s.close()
	if len(s.record.Mounts) == 0 {
		return nil
	}
	_, err = c.node.NodeExpandVolume(ctx, &csispec.NodeExpandVolumeRequest{
		VolumeId: id, VolumePath: s.record.Mounts[0].Path, StagingTargetPath: s.path(),
		CapacityRange: &csispec.CapacityRange{RequiredBytes: bytes},
	})
	return csiError(ctx, err)
}
