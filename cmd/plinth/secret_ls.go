package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
)

// secretShown is what is shown of a secret: never a value.
type secretShown struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Keys      []string `json:"keys"`
}

func newSecretLsCommand(c *cli) *cobra.Command {
	var p secretPlace
	var o output
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List secrets and their keys, never their values",
		Args:    program.Exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := c.secrets(cmd.Context(), p)
			if err != nil {
				return err
			}
			var names []string
			var rows [][]string
			for _, s := range list {
				names = append(names, s.Namespace+"/"+s.Name)
				rows = append(rows, []string{s.Namespace, s.Name, strings.Join(s.Keys, ",")})
			}
			return o.print(c.out, list, names, func() error {
				if len(rows) == 0 {
					_, err := fmt.Fprintln(c.err, "No secrets. Make one: plinth secret create NAME --from-file KEY=FILE")
					return err
				}
				return printTable(c.out, []string{"NAMESPACE", "NAME", "KEYS"}, rows)
			})
		},
	}
	cmd.Flags().StringVar(&p.dir, "secrets-dir", "", "`directory` of the secrets (default: secrets, beside the kubeconfig of plinth standalone)")
	o.addFlag(cmd)
	return cmd
}

func (c *cli) secrets(ctx context.Context, p secretPlace) ([]secretShown, error) {
	store, err := p.open(c)
	if err != nil {
		return nil, err
	}
	refs, err := store.List(ctx)
	if err != nil {
		return nil, err
	}
	list := []secretShown{}
	for _, ref := range refs {
		data, err := store.Get(ctx, ref)
		if backingimage.Is(err, backingimage.NotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, secretShown{Namespace: ref.Namespace, Name: ref.Name, Keys: slices.Sorted(maps.Keys(data))})
	}
	return list, nil
}
