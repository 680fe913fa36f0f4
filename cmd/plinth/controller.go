package main

import (
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"

	"plinth.dev/plinth/cmd/internal/control"
	"plinth.dev/plinth/cmd/internal/openers"
	"plinth.dev/plinth/cmd/internal/program"
)

func newControllerCommand(c *cli) *cobra.Command {
	var f control.ProcessFlags
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Run the controllers and the CSI driver's controller of a Kubernetes cluster",
		Long: `Run what decides in a Kubernetes cluster: the CSI socket's Identity and Controller, for the sidecars beside it, and the loops that
give images their copies and listen to nodes. It holds no data and needs no privileges. deploy/kubernetes and deploy/helm run it.

Several may run beside each other, with sockets of their own. All serve CSI; the loops run in the one that holds a Lease, and
in another as soon as that one stops, or is not heard of for --lease-duration. In a pod it takes the pod's service account, unless a
kubeconfig is named. The first SIGINT or SIGTERM stops gently.`,
		Example: `  plinth controller --csi-endpoint unix:///csi/csi.sock --http-listen :9280
  plinth controller --kubeconfig admin.conf --namespace plinth`,
		Args: program.Exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.Config()
			if err != nil {
				return err
			}
			api, err := c.processConfig()
			if err != nil {
				return err
			}
			cfg.CSIEndpoint, cfg.Backups = c.csiEndpoint, openers.Backups
			c.logAsProcess()
			return control.Run(cmd.Context(), cfg, api, c.out)
		},
	}
	f.AddTo(cmd.Flags())
	return cmd
}

// logAsProcess logs as what runs for long does: with times, and with the values of the contexts.
func (c *cli) logAsProcess() {
	klog.SetLoggerWithOptions(textlogger.NewLogger(textlogger.NewConfig(textlogger.Verbosity(c.verbosity))), klog.ContextualLogger(true))
}
