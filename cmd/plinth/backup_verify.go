package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/backup"
)

func newBackupVerifyCommand(c *cli) *cobra.Command {
	var f backupFlags
	cmd := &cobra.Command{
		Use:               "verify NAME...",
		Short:             "Read backups back and prove every byte",
		Long:              "Verify reads all that a restore of the backup would need, from the target to here, and compares it with its digests. Each object that is\ndamaged or missing is named.",
		Args:              program.AtLeastOne("NAME"),
		ValidArgsFunction: backups.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, name := range args {
				if err := c.verifyBackup(cmd.Context(), f, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	f.add(c, cmd)
	return cmd
}

func (c *cli) verifyBackup(ctx context.Context, f backupFlags, name string) error {
	b, err := c.findBackup(ctx, f, name)
	if err != nil {
		return err
	}
	defer b.repository.Close()
	meter := c.newMeter()
	found, err := b.repository.Verify(ctx, b.manifest, func(p backup.Progress) { // one at a time
		meter.show(progress{what: "backup " + name, state: string(v1alpha1.CopyInProgress), message: "verifying", doneBytes: p.DoneBytes, totalBytes: p.TotalBytes})
	})
	meter.end()
	if err != nil {
		return err
	}
	if err := found.Err(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "backup %s is whole: %d blocks, %s, were read and are right\n", name, found.Blocks, backingimage.SizeText(found.Bytes))
	return err
}
