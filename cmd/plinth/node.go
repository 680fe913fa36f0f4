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
	cmd := group("node", "Machines that hold disks", "Nodes are machines that run Plinth's agent. Each registers itself.",
		nodes.lsCommand(c), nodes.showCommand(c))
	cmd.AddCommand(placedNodes.commands(c)...)
	return cmd
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
		n.Name, conditionText(n.Status.Conditions, v1alpha1.ConditionReady), yesNo(n.Schedulable()), strings.Join(n.Spec.Tags, ","),
		ageText(now, n.Status.LastHeartbeatTime), n.Status.Version, ageText(now, n.CreationTimestamp),
	}
}

func showNode(_ context.Context, w io.Writer, _ *store.Client, n *v1alpha1.StorageNode, now time.Time) error {
	err := printFields(w, "",
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
