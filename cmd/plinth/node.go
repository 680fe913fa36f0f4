package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/agent"
	"plinth.dev/plinth/cmd/internal/openers"
	"plinth.dev/plinth/cmd/internal/program"
)

var nodes = &noun[*v1alpha1.StorageNode, *v1alpha1.StorageNodeList]{
	kind: "StorageNode", one: "node", many: "nodes",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.StorageNode, *v1alpha1.StorageNodeList] {
		return c.Nodes
	},
	empty:  "A machine becomes one when `plinth standalone` or `plinth node` runs on it.",
	header: []string{"NAME", "READY", "SCHEDULABLE", "TAGS", "HEARTBEAT", "VERSION", "AGE"},
	row:    nodeRow,
	show:   showNode,
}

func newNodeCommand(c *cli) *cobra.Command {
	cmd := group("node", "Machines that hold disks; with --node-name, run the agent of one", `Nodes are machines that run Plinth's agent. Each registers itself.

With --node-name, plinth node is that agent: it joins the API that --kubeconfig names (a cluster's, or that of a plinth
standalone, see plinth node join-config) or, in a pod, its service account's, registers this machine and its disks, makes their copies and volumes, and serves the
CSI socket's Identity and Node. It needs no other part of Plinth on this machine. Several run beside each other with names, data
directories, disks, sockets and ports of their own. The API may be away: what is mounted stays mounted, and the agent goes on when it
is back. The first SIGINT or SIGTERM stops gently.`,
		nodes.lsCommand(c), nodes.showCommand(c), newNodeJoinConfigCommand(c), newNodeRevokeCommand(c))
	cmd.AddCommand(placedNodes.commands(c)...)
	cmd.Example = `  plinth node --node-name node-2 --kubeconfig /etc/plinth/kubeconfig --disk /srv/disk \
    --peer-listen 0.0.0.0:9281 --advertise-address node-2.example.org`
	addAgent(c, cmd)
	return cmd
}

// addAgent makes a group of commands one that runs the agent, when flags say so.
func addAgent(c *cli, cmd *cobra.Command) {
	var f agent.NodeFlags
	f.AddTo(cmd.Flags())
	help := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().NFlag() == 0 {
			return help(cmd, args)
		}
		if f.NodeName == "" {
			return program.FlagError("node-name", "name this machine, as Plinth's objects and topology shall call it")
		}
		cfg, err := f.Config()
		if err != nil {
			return err
		}
		api, err := c.processConfig()
		if err != nil {
			return err
		}
		cfg.CSIEndpoint, cfg.Node.Openers, cfg.Backups = c.csiEndpoint, openers.All, openers.Backups
		c.logAsProcess()
		return agent.RunNode(cmd.Context(), cfg, api, c.out)
	}
}

var placedNodes = &placed{
	one: "node", complete: nodes.complete,
	change: func(ctx context.Context, client *store.Client, name, _ string, change func(placing)) (string, string, error) {
		if err := validateName("a node", name); err != nil {
			return "", "", err
		}
		n, err := nodes.modify(ctx, client, name, func(now *v1alpha1.StorageNode) {
			change(placing{&now.Spec.Tags, &now.Spec.AllowScheduling, &now.Spec.EvictionRequested})
		})
		if err != nil {
			return "", "", err
		}
		return "node " + n.Name, n.Name, nil
	},
	has: func(ctx context.Context, client *store.Client, name string) (int, int, error) {
		o := metav1.ListOptions{FieldSelector: "spec.nodeName=" + name}
		_, of, err := copies.list(ctx, client, o)
		if err != nil {
			return 0, 0, err
		}
		_, vs, err := volumes.list(ctx, client, o)
		return len(of), len(vs), err
	},
}

func nodeRow(n *v1alpha1.StorageNode, now time.Time) []string {
	return []string{
		n.Name, conditionWord(n.Status.Conditions, v1alpha1.ConditionReady), yesNo(n.Schedulable()), strings.Join(n.Spec.Tags, ","),
		ageText(now, n.Status.LastHeartbeatTime), n.Status.Version, ageText(now, n.CreationTimestamp),
	}
}

func showNode(_ context.Context, w io.Writer, _ *store.Client, n *v1alpha1.StorageNode, now time.Time) error {
	err := printFields(w,
		field{"Name", n.Name},
		field{"Ready", conditionText(n.Status.Conditions, v1alpha1.ConditionReady)},
		field{"Schedulable", yesNo(n.Schedulable())},
		field{"Eviction requested", yesNo(n.Spec.EvictionRequested)},
		field{"Cordoned", yesNo(n.Status.Cordoned)},
		field{"Drained", setConditionText(n.Status.Conditions, v1alpha1.ConditionDrained)},
		field{"Removed", setConditionText(n.Status.Conditions, v1alpha1.ConditionRemoved)},
		field{"Tags", strings.Join(n.Spec.Tags, ",")},
		field{"Address", n.Status.Address},
		field{"Last heartbeat", timeText(now, n.Status.LastHeartbeatTime)},
		field{"Version", n.Status.Version},
		field{"Created", timeText(now, n.CreationTimestamp)},
	)
	if err != nil || len(n.Status.Disks) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	var rows [][]string
	for _, d := range n.Status.Disks {
		by := "disk add"
		if d.FromFlag {
			by = "--disk"
		}
		rows = append(rows, []string{d.Path, by, d.UUID, cmp.Or(d.Reason, "open"), d.Message})
	}
	return printTable(w, []string{"DISK AT", "NAMED BY", "UUID", "STATE", "MESSAGE"}, rows)
}
