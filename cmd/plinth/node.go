package main

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

var nodes = &noun[*v1alpha1.StorageNode, *v1alpha1.StorageNodeList]{
	kind: "StorageNode", one: "node", many: "nodes",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.StorageNode, *v1alpha1.StorageNodeList] {
		return c.Nodes
	},
	empty:  "A machine becomes one when `plinth standalone` runs on it.",
	header: []string{"NAME", "READY", "SCHEDULABLE", "TAGS", "HEARTBEAT", "VERSION", "AGE"},
	row:    nodeRow,
	show:   showNode,
}

func newNodeCommand(c *cli) *cobra.Command {
	return group("node", "Machines that hold disks", "Nodes are machines that run Plinth's agent. Each registers itself.",
		nodes.lsCommand(c), nodes.showCommand(c))
}

func nodeRow(n *v1alpha1.StorageNode, now time.Time) []string {
	return []string{
		n.Name, conditionText(n.Status.Conditions, v1alpha1.ConditionReady), yesNo(n.Schedulable()), strings.Join(n.Spec.Tags, ","),
		ageText(now, n.Status.LastHeartbeatTime), n.Status.Version, ageText(now, n.CreationTimestamp),
	}
}

func showNode(_ context.Context, w io.Writer, _ *store.Client, n *v1alpha1.StorageNode, now time.Time) error {
	return printFields(w, "",
		field{"Name", n.Name},
		field{"Ready", conditionText(n.Status.Conditions, v1alpha1.ConditionReady)},
		field{"Schedulable", yesNo(n.Schedulable())},
		field{"Eviction requested", yesNo(n.Spec.EvictionRequested)},
		field{"Tags", strings.Join(n.Spec.Tags, ",")},
		field{"Address", n.Status.Address},
		field{"Last heartbeat", timeText(now, n.Status.LastHeartbeatTime)},
		field{"Version", n.Status.Version},
		field{"Created", timeText(now, n.CreationTimestamp)},
	)
}
