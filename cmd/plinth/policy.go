package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

var policies = &noun[*v1alpha1.BackupPolicy, *v1alpha1.BackupPolicyList]{
	kind: "BackupPolicy", one: "backup policy", many: "backup policies",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.BackupPolicy, *v1alpha1.BackupPolicyList] {
		return c.Policies
	},
	empty:  "Make one: plinth policy create NAME --schedule '0 2 * * *' --volume VOLUME",
	header: []string{"NAME", "TARGET", "SCHEDULE", "VOLUMES", "KEEPS", "LAST", "NEXT", "AGE", "MESSAGE"},
	row: func(p *v1alpha1.BackupPolicy, now time.Time) []string {
		message := ""
		if conditionWord(p.Status.Conditions, v1alpha1.ConditionReady) != "yes" {
			message = readyMessage(p.Status.Conditions)
		}
		last := ""
		if at := p.Status.LastTime; at != nil {
			last = ageText(now, *at)
		}
		return []string{p.Name, p.Spec.Target, p.Spec.Schedule, policyVolumes(p), policyKeeps(p.Spec), last, policyNext(p), ageText(now, p.CreationTimestamp), beginning(message)}
	},
	show: showPolicy,
}

func newPolicyCommand(c *cli) *cobra.Command {
	return group("policy", "Backups by a schedule",
		"Backup policies make backups of volumes by a schedule, and remove those of their own that are kept no longer.",
		newPolicyCreateCommand(c), policies.lsCommand(c), policies.showCommand(c), newPolicySetCommand(c), newPolicyRmCommand(c))
}

// policyVolumes are the volumes of a policy, or what chooses them.
func policyVolumes(p *v1alpha1.BackupPolicy) string {
	switch selector := metav1.FormatLabelSelector(p.Spec.VolumeSelector); {
	case p.Spec.VolumeSelector == nil:
		return strings.Join(p.Spec.Volumes, ",")
	case len(p.Spec.VolumeSelector.MatchLabels)+len(p.Spec.VolumeSelector.MatchExpressions) == 0:
		return "all"
	default:
		return "with " + selector
	}
}

// policyKeeps is like "3 last, 7 daily".
func policyKeeps(s v1alpha1.BackupPolicySpec) string {
	var keeps []string
	for _, k := range []struct {
		n    int32
		what string
	}{{s.KeepLast, "last"}, {s.KeepDaily, "daily"}, {s.KeepWeekly, "weekly"}} {
		if k.n > 0 {
			keeps = append(keeps, fmt.Sprint(k.n, " ", k.what))
		}
	}
	if len(keeps) == 0 {
		return "all"
	}
	return strings.Join(keeps, ", ")
}

// policyNext is when the next backups are made.
func policyNext(p *v1alpha1.BackupPolicy) string {
	switch at := p.Status.NextTime; {
	case p.Spec.Suspend:
		return "suspended"
	case at == nil:
		return ""
	default:
		return at.UTC().Format(time.RFC3339)
	}
}

func showPolicy(ctx context.Context, w io.Writer, client *store.Client, p *v1alpha1.BackupPolicy, now time.Time) error {
	fields := []field{
		{"Name", p.Name}, {"Target", p.Spec.Target}, {"Schedule", p.Spec.Schedule}, {"Volumes", policyVolumes(p)}, {"Keeps", policyKeeps(p.Spec)},
		{"Ready", conditionText(p.Status.Conditions, v1alpha1.ConditionReady)}, {"Next", policyNext(p)},
	}
	if at := p.Status.LastTime; at != nil {
		fields = append(fields, field{"Last", timeText(now, *at)})
	}
	if err := printFields(w, append(fields, field{"Created", timeText(now, p.CreationTimestamp)})...); err != nil {
		return err
	}
	_, all, err := backups.list(ctx, client, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var rows [][]string
	for _, b := range all {
		if b.Spec.Policy == p.Name {
			rows = append(rows, backups.row(b, now))
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return printTable(w, backups.header, rows)
}

func newPolicyRmCommand(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Aliases:           []string{"delete"},
		Short:             "Remove backup policies",
		Long:              "Rm ends the schedule. The backups that the policy made stay, and nobody removes them any more: see plinth backup rm.",
		Args:              program.AtLeastOne("NAME"),
		ValidArgsFunction: policies.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			for _, name := range args {
				if _, err := policies.get(cmd.Context(), client, name); err != nil {
					return err
				}
				if err := client.Policies.Delete(cmd.Context(), name, metav1.DeleteOptions{}); err != nil {
					return apiError(err, "delete", "backup policy", name)
				}
				if _, err := fmt.Fprintf(c.out, "backup policy %s removed; its backups stay\n", name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
