package main

import (
	"context"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

func newSnapshotRmCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Delete snapshots",
		Long: "Rm deletes snapshots, by name or by handle. Volumes that were made from one stay as they are; one that a volume is still being made\n" +
			"from is refused.",
		Args:              program.AtLeastOne("NAME"),
		ValidArgsFunction: snapshots.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.removeSnapshots(cmd.Context(), args)
		},
	}
}

func (c *cli) removeSnapshots(ctx context.Context, names []string) error {
	return c.deleteEach(ctx, "snapshot", names, func(client *store.Client, driver *csiClient, name string) error {
		handle, err := findSnapshot(ctx, client, name)
		if err != nil {
			return err
		}
		_, err = driver.controller.DeleteSnapshot(ctx, &csispec.DeleteSnapshotRequest{SnapshotId: handle})
		return csiError(ctx, err)
	})
}
