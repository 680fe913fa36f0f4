// Package program is what Plinth's binaries have in common as programs: one table of exit codes, errors printed once, what
// signals do, and how a wrong command line is told.
package program

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
)

// Set by the linker; see the Makefile.
var (
	Version = "dev"
	Commit  = ""
)

// Run executes one command line and returns its exit code. An error is printed once, on stderr, without the usage.
func Run(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(root.ErrOrStderr(), "plinth: %s\n", ErrorText(ctx, err))
	}
	return ExitCode(ctx, err)
}

// Interruptible returns a context that the first SIGINT or SIGTERM ends; the second ends the process at once.
func Interruptible() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		cancel(fmt.Errorf("%w: %s", errInterrupted, <-signals))
		<-signals
		os.Exit(exitInterrupted)
	}()
	return ctx
}

// ProcessFlags are flags that every command has.
func ProcessFlags(flags *pflag.FlagSet, csiEndpoint *string, verbosity *int) {
	flags.StringVar(csiEndpoint, "csi-endpoint", "unix:///run/plinth/csi.sock", "CSI `socket` that volume commands talk to, and that standalone, controller and node serve")
	flags.IntVarP(verbosity, "verbosity", "v", 0, "log `level`: 0 state changes, 2 steps, 4 why nothing was done, 5 payloads")
}

// UsageError is Invalid, and says where the help is.
func UsageError(cmd *cobra.Command, format string, args ...any) error {
	args = append(args, cmd.CommandPath())
	return backingimage.Errorf(backingimage.Invalid, format+" (see %s --help)", args...)
}

// Exactly checks that a command has the named arguments.
func Exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return UsageError(cmd, "%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return UsageError(cmd, "unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// AtLeastOne checks that a command has one argument or more.
func AtLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return UsageError(cmd, "%s is missing", name)
		}
		return nil
	}
}

// AtMostOne checks that a command has no argument or one.
func AtMostOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return UsageError(cmd, "unexpected argument %q after %s", args[1], name)
		}
		return nil
	}
}

// SetVerbosity sets the level of klog, in every library too.
func SetVerbosity(level int) error {
	flags := flag.NewFlagSet("log", flag.ContinueOnError)
	klog.InitFlags(flags)
	return flags.Set("v", strconv.Itoa(level))
}

// FlagError is Invalid and names the flag.
func FlagError(flag, format string, args ...any) error {
	return backingimage.Errorf(backingimage.Invalid, "--"+flag+": "+format, args...)
}
