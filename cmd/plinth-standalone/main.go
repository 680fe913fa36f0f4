// Command plinth-standalone is what `plinth standalone` runs: everything on one machine, with an embedded control plane. It
// takes the same command line. It is a binary of its own because the API server and etcd that it links would cost every
// other command their initialisation.
package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/cmd/internal/openers"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/cmd/internal/standalone"
	"plinth.dev/plinth/deploy"
)

func main() {
	code := program.Run(program.Interruptible(), newRootCommand(), os.Args[1:])
	klog.Flush()
	os.Exit(code)
}

func newRootCommand() *cobra.Command {
	var endpoint string
	var verbosity int
	root := &cobra.Command{Use: "plinth", SilenceUsage: true, SilenceErrors: true, CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true}}
	program.ProcessFlags(root.PersistentFlags(), &endpoint, &verbosity)
	root.AddCommand(standalone.NewCommand(&endpoint, func(ctx context.Context, c standalone.Config, out io.Writer) error {
		logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(verbosity)))
		klog.SetLoggerWithOptions(embedded.Quiet(logger), klog.ContextualLogger(true))
		c.Openers, c.Backups = openers.All, openers.Backups
		return standalone.Run(ctx, c, newAPI, out)
	}))
	return root
}

func newAPI(c standalone.APIConfig) (standalone.API, error) {
	return embedded.New(embedded.Options{Dir: c.DataDir, Listen: c.Listen, Advertise: c.Advertise, CRDs: deploy.CRDs})
}
