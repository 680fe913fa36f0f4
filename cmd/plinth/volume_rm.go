package main

import (
	"context"
	"fmt"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

func newVolumeRmCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Aliases:           []string{"delete"},
		Short:             "Delete volumes and their data",
		Args:              program.AtLeastOne("NAME"),
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.removeVolumes(cmd.Context(), args)
		},
	}
}

func (c *cli) removeVolumes(ctx context.Context, names []string) error {
	return c.deleteEach(ctx, "volume", names, func(client *store.Client, driver *csiClient, name string) error {
		v, err := findVolume(ctx, client, name)
		if err != nil {
			return err
		}
		_, err = driver.controller.DeleteVolume(ctx, &csispec.DeleteVolumeRequest{VolumeId: v.Name})
		return unmountFirst(csiError(ctx, err), v)
	})
}

// unmountFirst adds to the driver's refusal what a person does about it.
func unmountFirst(err error, v *v1alpha1.Volume) error {
	if v.Status.Device == "" || !backingimage.Is(err, backingimage.Precondition) {
		return err
	}
	return fmt.Errorf("%w (plinth volume unmount %s does that for what plinth volume mount did)", err, v.Name)
}
