package main

import (
	"io"

	"github.com/spf13/cobra"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/cmd/internal/standalone"
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
		return program.UsageError(cmd, "%w", err)
	})
	flags := root.PersistentFlags()
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `file` of the API that holds Plinth's objects (default: $PLINTH_KUBECONFIG, $KUBECONFIG, "+standaloneKubeconfig+", ~/.kube/config; the first that is there)")
	program.ProcessFlags(flags, &c.csiEndpoint, &c.verbosity)
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if err := cmd.ValidateRequiredFlags(); err != nil { // cobra's own error is nobody's mistake
			return program.UsageError(cmd, "%w", err)
		}
		return program.SetVerbosity(c.verbosity)
	}
	root.AddCommand(
		standalone.NewCommand(&c.csiEndpoint, execStandalone),
		newControllerCommand(c),
		newImageCommand(c),
		newVolumeCommand(c),
		newSnapshotCommand(c),
		newDiskCommand(c),
		newNodeCommand(c),
		newSecretCommand(c),
		newTargetCommand(c),
		newBackupCommand(c),
		newPolicyCommand(c),
		newDoctorCommand(c),
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
				return program.UsageError(cmd, "unknown command %q; did you mean %q?", args[0], near[0])
			}
			return program.UsageError(cmd, "unknown command %q", args[0])
		},
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(children...)
	return cmd
}
