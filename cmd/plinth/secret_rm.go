package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/cmd/internal/program"
)

func newSecretRmCommand(c *cli) *cobra.Command {
	var p secretPlace
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Remove secrets",
		Long:    "Rm removes secrets. Images that name one and are ready need it no more; one that is still to be fetched fails and says so.",
		Args:    program.AtLeastOne("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := p.open(c)
			if err != nil {
				return err
			}
			for _, name := range args {
				ref, err := credential.NewRef(p.namespace, name)
				if err != nil {
					return err
				}
				if _, err := store.Get(cmd.Context(), ref); backingimage.Is(err, backingimage.NotFound) {
					return err
				}
				if err := store.Delete(cmd.Context(), ref); err != nil {
					return err
				}
				fmt.Fprintf(c.out, "secret %s removed\n", ref)
			}
			return nil
		},
	}
	p.addFlags(cmd)
	return cmd
}
