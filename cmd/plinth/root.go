package main

import (
	"flag"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
)

// cli is what every command shares: where it prints, and the persistent flags.
type cli struct {
	out io.Writer // results
	err io.Writer // progress, warnings, errors

	clock clock.PassiveClock

	kubeconfig  string
	csiEndpoint string
	verbosity   int
}

func newRootCommand(c *cli) *cobra.Command {
	root := group("plinth", "Volumes that start from backing images",
		"Plinth makes volumes that start from backing images: golden disks or data sets, fetched once, verified, and cloned in milliseconds.")
	root.SilenceUsage, root.SilenceErrors = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(cmd, "%w", err)
	})
	flags := root.PersistentFlags()
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `file` of the API that holds Plinth's objects (default: $PLINTH_KUBECONFIG, $KUBECONFIG, "+standaloneKubeconfig+", ~/.kube/config; the first that is there)")
	flags.StringVar(&c.csiEndpoint, "csi-endpoint", "unix:///run/plinth/csi.sock", "CSI `socket` that volume commands talk to, and that standalone serves")
	flags.IntVarP(&c.verbosity, "verbosity", "v", 0, "log `level`: 0 state changes, 2 steps, 4 why nothing was done, 5 payloads")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return setVerbosity(c.verbosity) }
	root.AddCommand(
		newStandaloneCommand(c),
		newImageCommand(c),
		newVolumeCommand(c),
		newDiskCommand(c),
		newNodeCommand(c),
		newVersionCommand(c),
		newExitCodesTopic(),
	)
	return root
}

// group is a command that only holds others: alone it prints its help, with a word that it does not know it says so.
func group(use, short, long string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  long,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return usageError(cmd, "unknown command %q; did you mean %q?", args[0], near[0])
			}
			return usageError(cmd, "unknown command %q", args[0])
		},
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(children...)
	return cmd
}

// usageError is Invalid, and says where the help is.
func usageError(cmd *cobra.Command, format string, args ...any) error {
	args = append(args, cmd.CommandPath())
	return backingimage.Errorf(backingimage.Invalid, format+" (see %s --help)", args...)
}

// exactly checks that a command has the named arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usageError(cmd, "%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return usageError(cmd, "unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// atLeastOne checks that a command has one argument or more.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageError(cmd, "%s is missing", name)
		}
		return nil
	}
}

func setVerbosity(level int) error {
	flags := flag.NewFlagSet("log", flag.ContinueOnError)
	klog.InitFlags(flags)
	return flags.Set("v", strconv.Itoa(level))
}
