package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// placing is what users say about what may be put on a disk or a node.
type placing struct {
	tags  *[]string
	allow **bool
	evict *bool
}

// placed is a noun that things are placed on: its commands tag, cordon, uncordon and evict.
type placed struct {
	one      string // the noun, as an argument in capital letters too
	complete func(c *cli) cobra.CompletionFunc
	// change finds the object, changes what is said about it, and returns how to call it in a sentence, and its name.
	change func(ctx context.Context, client *store.Client, ref, node string, change func(placing)) (called, name string, err error)
	// has counts what is on it.
	has      func(ctx context.Context, client *store.Client, name string) (copies, volumes int, err error)
	nodeFlag bool // whether a reference may need a node
}

func (p *placed) argument() string { return strings.ToUpper(p.one) }

func (p *placed) commands(c *cli) []*cobra.Command {
	return []*cobra.Command{p.tagCommand(c), p.cordonCommand(c), p.uncordonCommand(c), p.evictCommand(c)}
}

// command makes one of the commands; run gets the reference, and --node where there is one.
func (p *placed) command(c *cli, use, short, long string, args cobra.PositionalArgs, run func(ctx context.Context, client *store.Client, args []string, node string) error) *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: args, ValidArgsFunction: p.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			return run(cmd.Context(), client, args, node)
		},
	}
	if p.nodeFlag {
		addNodeFlag(cmd, &node)
	}
	return cmd
}

func addNodeFlag(cmd *cobra.Command, node *string) {
	cmd.Flags().StringVar(node, "node", "", "`name` of the node, where a path alone does not tell which disk is meant")
}

func (p *placed) tagCommand(c *cli) *cobra.Command {
	return p.command(c, "tag "+p.argument()+" TAG|TAG-...", "Give a "+p.one+" tags, or take them away",
		"Tag gives a "+p.one+" tags that the selectors of images and volumes ask for; TAG- takes one away. What is on the "+p.one+" already stays.",
		program.AtLeastOne(p.argument()), func(ctx context.Context, client *store.Client, args []string, node string) error {
			add, remove, err := parseTags(args[1:])
			if err != nil {
				return err
			}
			var tags []string
			called, _, err := p.change(ctx, client, args[0], node, func(now placing) {
				tags = retag(*now.tags, add, remove)
				*now.tags = tags
			})
			if err != nil {
				return err
			}
			if len(tags) == 0 {
				_, err = fmt.Fprintf(c.out, "%s has no tags\n", called)
			} else {
				_, err = fmt.Fprintf(c.out, "%s has the tags %s\n", called, strings.Join(tags, ", "))
			}
			return err
		})
}

// parseTags reads TAG (to add) and TAG- (to remove). Invalid for what no selector, which is a comma list, could name.
func parseTags(args []string) (add, remove []string, err error) {
	if len(args) == 0 {
		return nil, nil, backingimage.Errorf(backingimage.Invalid, "give the tags to add, as TAG, or to take away, as TAG-")
	}
	for _, a := range args {
		tag, away := strings.CutSuffix(a, "-")
		switch {
		case tag == "" || strings.ContainsAny(tag, ", \t\n") || strings.HasSuffix(tag, "-"):
			return nil, nil, backingimage.Errorf(backingimage.Invalid, "%q is no tag: write it without commas and blanks, and - behind it to take it away", a)
		case away:
			remove = append(remove, tag)
		default:
			add = append(add, tag)
		}
	}
	return add, remove, nil
}

// retag returns tags with some more and some less, in their order.
func retag(tags, add, remove []string) []string {
	var all []string
	for _, t := range slices.Concat(tags, add) {
		if !slices.Contains(all, t) && !slices.Contains(remove, t) {
			all = append(all, t)
		}
	}
	return all
}

func (p *placed) cordonCommand(c *cli) *cobra.Command {
	return p.command(c, "cordon "+p.argument(), "Place nothing new on a "+p.one,
		"Cordon keeps new copies and volumes off a "+p.one+". What is on it stays and works.",
		program.Exactly(p.argument()), func(ctx context.Context, client *store.Client, args []string, node string) error {
			no := false
			called, _, err := p.change(ctx, client, args[0], node, func(now placing) { *now.allow = &no })
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "%s gets nothing new; undo it with: plinth %s uncordon %s\n", called, p.one, args[0])
			return err
		})
}

func (p *placed) uncordonCommand(c *cli) *cobra.Command {
	return p.command(c, "uncordon "+p.argument(), "Place new copies and volumes on a "+p.one+" again", "",
		program.Exactly(p.argument()), func(ctx context.Context, client *store.Client, args []string, node string) error {
			yes, evicted := true, false
			called, _, err := p.change(ctx, client, args[0], node, func(now placing) { *now.allow, evicted = &yes, *now.evict })
			if err != nil {
				return err
			}
			if evicted {
				_, err = fmt.Fprintf(c.out, "%s still gets nothing new, because its eviction is requested; undo that with: plinth %s evict %s --undo\n", called, p.one, args[0])
			} else {
				_, err = fmt.Fprintf(c.out, "%s may get new copies and volumes\n", called)
			}
			return err
		})
}

func (p *placed) evictCommand(c *cli) *cobra.Command {
	var undo bool
	cmd := p.command(c, "evict "+p.argument(), "Move every copy away from a "+p.one,
		"Evict moves the copies of images away from a "+p.one+": each is removed when another is ready elsewhere, and stays when there is nowhere to\n"+
			"go. Nothing new is placed on it. Volumes are not moved; they keep their data and work on.",
		program.Exactly(p.argument()), func(ctx context.Context, client *store.Client, args []string, node string) error {
			called, name, err := p.change(ctx, client, args[0], node, func(now placing) { *now.evict = !undo })
			if err != nil {
				return err
			}
			if undo {
				_, err = fmt.Fprintf(c.out, "%s keeps its copies\n", called)
				return err
			}
			copies, volumes, err := p.has(ctx, client, name)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "%s gets nothing new%s; follow it with: plinth %s show %s; undo it with: plinth %s evict %s --undo\n",
				called, whatMoves(copies, volumes), p.one, args[0], p.one, args[0])
			return err
		})
	cmd.Flags().BoolVar(&undo, "undo", false, "take the request back")
	return cmd
}

// whatMoves says what an eviction does to what is there.
func whatMoves(copies, volumes int) string {
	text := ", and has no copies to move away"
	if copies > 0 {
		text = fmt.Sprintf(", and its copies (%d) move away", copies)
	}
	if volumes > 0 {
		text += fmt.Sprintf("; its volumes (%d) stay", volumes)
	}
	return text
}
