package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// diskOrphan is an orphan with the disk that it is on, as -o json prints it.
type diskOrphan struct {
	Disk string `json:"disk"`
	Node string `json:"node"`
	v1alpha1.Orphan
}

func newDiskOrphansCommand(c *cli) *cobra.Command {
	var o output
	var node string
	cmd := &cobra.Command{
		Use:   "orphans [DISK]",
		Short: "List files on disks that no object describes",
		Long: "Orphans lists what lies on disks and is no volume or image that Plinth knows: what a lost control plane, or plinth disk rm --lost, has\n" +
			"left. Volumes are never removed by machine. Copies of images are removed by the agent; one that stays here cannot be removed.",
		Args:              program.AtMostOne("DISK"),
		ValidArgsFunction: disks.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			of, err := c.orphanDisks(cmd.Context(), client, args, node)
			if err != nil {
				return err
			}
			return c.printOrphans(&o, of)
		},
	}
	addNodeFlag(cmd, &node)
	o.addFlag(cmd)
	return cmd
}

// orphanDisks are the disks to look at: the one that is named, or all.
func (c *cli) orphanDisks(ctx context.Context, client *store.Client, args []string, node string) ([]*v1alpha1.Disk, error) {
	if len(args) == 0 {
		_, all, err := disks.list(ctx, client, metav1.ListOptions{})
		return all, err
	}
	d, err := findDiskOn(ctx, client, args[0], node)
	return []*v1alpha1.Disk{d}, err
}

func (c *cli) printOrphans(o *output, of []*v1alpha1.Disk) error {
	all, names, rows := []diskOrphan{}, []string{}, [][]string{}
	for _, d := range of {
		for _, orphan := range d.Status.Orphans {
			all = append(all, diskOrphan{d.Name, d.Spec.NodeName, orphan})
			names = append(names, orphan.Name)
			rows = append(rows, []string{d.Name, d.Spec.NodeName, string(orphan.Kind), orphan.Name, sizeText(orphan.UsedBytes), orphanRemedy(orphan)})
		}
	}
	return o.print(c.out, all, names, func() error {
		if len(rows) == 0 {
			_, err := fmt.Fprintln(c.err, "No orphans.")
			return err
		}
		return printTable(c.out, []string{"DISK", "NODE", "KIND", "NAME", "SIZE", "WHAT TO DO"}, rows)
	})
}

func orphanRemedy(o v1alpha1.Orphan) string {
	if o.Kind == v1alpha1.OrphanImage {
		return "nothing: the agent removes it; if it stays, its log says why"
	}
	return "copy its data from " + o.Path + " if somebody needs it, then remove that directory"
}
