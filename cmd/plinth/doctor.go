package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner/doctor"
)

// diagnosis is what `plinth doctor -o json` prints.
type diagnosis struct {
	Healthy  bool             `json:"healthy"` // neither errors nor warnings
	Findings []doctor.Finding `json:"findings"`
}

func newDoctorCommand(c *cli) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong, and what to do",
		Long: `Doctor reads the objects of images, copies, nodes, disks and volumes, and in a Kubernetes cluster the CSIDriver, the classes and the claims of
the driver, and says in a line each what is wrong and what to do. It changes nothing.

An error will not mend by itself; a warning may, or becomes an error when nothing is done; a note is no reason to act. Exit code 0: neither errors nor
warnings; 5: errors; 6: warnings, or the API does not answer.`,
		Example: "  plinth doctor\n  plinth doctor -o json | jq -r '.findings[] | select(.severity == \"error\") | .message'",
		Args:    program.Exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.examine(cmd.Context(), o)
		},
	}
	o.addFlag(cmd)
	return cmd
}

func (c *cli) examine(ctx context.Context, o output) error {
	cfg, err := c.restConfig()
	if err != nil {
		return err
	}
	cfg.Timeout, cfg.QPS = apiTimeout, -1
	snapshot, err := doctor.Take(ctx, cfg, driverName)
	if err != nil {
		return apiError(err, "read", "objects", "all")
	}
	snapshot.Version, snapshot.Now = program.Version, c.clock.Now()
	findings := doctor.Examine(snapshot)
	worst := doctor.Worst(findings)
	d := diagnosis{Healthy: worst != doctor.Error && worst != doctor.Warning, Findings: findings}
	if err := o.print(c.out, d, findingNames(findings), func() error { return c.printFindings(findings) }); err != nil {
		return err
	}
	switch worst {
	case doctor.Error:
		return backingimage.Errorf(backingimage.Precondition, "%s", counted(findings))
	case doctor.Warning:
		return backingimage.Errorf(backingimage.NotReady, "%s", counted(findings))
	}
	return nil
}

func (c *cli) printFindings(findings []doctor.Finding) error {
	if len(findings) == 0 {
		_, err := fmt.Fprintln(c.out, "nothing is wrong")
		return err
	}
	var rows [][]string
	for _, f := range findings {
		rows = append(rows, []string{string(f.Severity), findingObject(f), f.Problem, f.Message, f.Remedy})
	}
	return printTable(c.out, []string{"SEVERITY", "OBJECT", "PROBLEM", "WHAT IS WRONG", "WHAT TO DO"}, rows)
}

// findingObject is kind/name, or kind/namespace/name.
func findingObject(f doctor.Finding) string {
	object := f.Kind
	for _, part := range []string{f.Namespace, f.Name} {
		if part != "" {
			object += "/" + part
		}
	}
	return object
}

func findingNames(findings []doctor.Finding) []string {
	var names []string
	for _, f := range findings {
		names = append(names, findingObject(f))
	}
	return names
}

// counted is how many findings of each severity there are.
func counted(findings []doctor.Finding) string {
	n := map[doctor.Severity]int{}
	for _, f := range findings {
		n[f.Severity]++
	}
	return fmt.Sprintf("%d errors, %d warnings", n[doctor.Error], n[doctor.Warning])
}
