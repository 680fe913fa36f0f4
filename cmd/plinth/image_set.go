package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/cmd/internal/program"
)

// keeping is how many copies of an image are kept and where: what can be changed as long as it exists.
type keeping struct {
	minCopies    int32
	nodes, disks []string
	prefetch     bool
}

// keepingFlags are its flags.
var keepingFlags = []string{"min-copies", "node-selector", "disk-selector", "prefetch"}

func (k *keeping) addTo(f *pflag.FlagSet) {
	f.Int32Var(&k.minCopies, "min-copies", 1, "least `number` of copies to keep, on different nodes where possible")
	f.StringSliceVar(&k.nodes, "node-selector", nil, "comma list of `tags` that a node must have to hold a copy")
	f.StringSliceVar(&k.disks, "disk-selector", nil, "comma list of `tags` that a disk must have to hold a copy")
	f.BoolVar(&k.prefetch, "prefetch", false, "keep a copy on every disk that the selectors match")
}

func (k *keeping) validate() error {
	if k.minCopies < 1 || k.minCopies > 100 {
		return backingimage.Errorf(backingimage.Invalid, "--min-copies: %d is not a number of copies to keep; use 1 to 100", k.minCopies)
	}
	return nil
}

// apply writes those of the flags into an image's spec for which given holds.
func (k *keeping) apply(s *v1alpha1.BackingImageSpec, given func(flag string) bool) {
	if given("min-copies") {
		s.MinNumberOfCopies = k.minCopies
	}
	if given("node-selector") {
		s.NodeSelector = tagList(k.nodes)
	}
	if given("disk-selector") {
		s.DiskSelector = tagList(k.disks)
	}
	if given("prefetch") {
		s.Prefetch = k.prefetch
	}
}

func newImageSetCommand(c *cli) *cobra.Command {
	var k keeping
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Change how many copies of an image are kept, and where",
		Long: "Set changes how many copies of an image are kept and which nodes and disks may hold them; flags that are not given stay as they\n" +
			"are. New copies are made at once. A copy that is not wanted any more goes when its time has come: see plinth image cleanup.",
		Example:           "  plinth image set fedora-42 --min-copies 3\n  plinth image set fedora-42 --node-selector rack-a --prefetch\n  plinth image set fedora-42 --node-selector '' --prefetch=false",
		Args:              program.Exactly("NAME"),
		ValidArgsFunction: images.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.ContainsFunc(keepingFlags, cmd.Flags().Changed) {
				return program.UsageError(cmd, "say what to change: --%s", strings.Join(keepingFlags, ", --"))
			}
			return c.setImage(cmd.Context(), args[0], k, cmd.Flags().Changed)
		},
	}
	k.addTo(cmd.Flags())
	return cmd
}

func (c *cli) setImage(ctx context.Context, name string, k keeping, given func(string) bool) error {
	if err := validateName("an image", name); err != nil {
		return err
	}
	if err := k.validate(); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	i, err := images.modify(ctx, client, name, func(i *v1alpha1.BackingImage) { k.apply(&i.Spec, given) })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "image %s: %s\n", i.Name, keptText(i.Spec))
	return err
}

// keptText is like "at least 3 copies, on nodes with the tags [rack-a], on every disk that fits".
func keptText(s v1alpha1.BackingImageSpec) string {
	text := fmt.Sprintf("at least %d copies", max(s.MinNumberOfCopies, 1))
	if s.MinNumberOfCopies <= 1 {
		text = "at least one copy"
	}
	if len(s.NodeSelector) > 0 {
		text += fmt.Sprintf(", on nodes with the tags %v", s.NodeSelector)
	}
	if len(s.DiskSelector) > 0 {
		text += fmt.Sprintf(", on disks with the tags %v", s.DiskSelector)
	}
	if s.Prefetch {
		text += ", on every disk that fits"
	}
	return text
}
