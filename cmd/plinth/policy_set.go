package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner"
)

// policyRequest is what the flags of `policy create` and `policy set` ask for.
type policyRequest struct {
	spec     v1alpha1.BackupPolicySpec
	selector string
	all      bool
}

// policyFlags are the flags of which a policy consists.
var policyFlags = []string{"target", "schedule", "volume", "selector", "all", "keep-last", "keep-daily", "keep-weekly", "suspend"}

func (r *policyRequest) addTo(c *cli, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&r.spec.Target, "target", "", "`name` of the backup target (default: the only one)")
	f.StringVar(&r.spec.Schedule, "schedule", "", "when, as `cron` has it: minute, hour, day, month, weekday, in UTC unless it begins with CRON_TZ=Zone; or @daily and the like")
	f.StringSliceVar(&r.spec.Volumes, "volume", nil, "`volume` that is backed up; a comma list, or repeated")
	f.StringVar(&r.selector, "selector", "", "`labels` of the volumes that are backed up, like app=db")
	f.BoolVar(&r.all, "all", false, "back up all volumes")
	f.Int32Var(&r.spec.KeepLast, "keep-last", 0, "`number` of each volume's newest backups that stay; without any of the three, all stay")
	f.Int32Var(&r.spec.KeepDaily, "keep-daily", 0, "`number` of days of each of which the last backup stays")
	f.Int32Var(&r.spec.KeepWeekly, "keep-weekly", 0, "`number` of weeks, from Monday, of each of which the last backup stays")
	f.BoolVar(&r.spec.Suspend, "suspend", false, "make no backups while this is true")
	_ = cmd.RegisterFlagCompletionFunc("target", targets.complete(c)) // fails only for a flag that is not there
	_ = cmd.RegisterFlagCompletionFunc("volume", volumes.complete(c))
}

// apply writes those of the flags into a policy's spec for which given holds.
func (r *policyRequest) apply(s *v1alpha1.BackupPolicySpec, given func(flag string) bool) {
	if given("target") {
		s.Target = r.spec.Target
	}
	if given("schedule") {
		s.Schedule = r.spec.Schedule
	}
	if given("volume") || given("selector") || given("all") {
		s.Volumes, s.VolumeSelector = r.spec.Volumes, r.spec.VolumeSelector
	}
	if given("keep-last") {
		s.KeepLast = r.spec.KeepLast
	}
	if given("keep-daily") {
		s.KeepDaily = r.spec.KeepDaily
	}
	if given("keep-weekly") {
		s.KeepWeekly = r.spec.KeepWeekly
	}
	if given("suspend") {
		s.Suspend = r.spec.Suspend
	}
}

// open checks a policy's name and its flags, and connects to the API, in which it finds the volumes and the target that they name.
func (r *policyRequest) open(ctx context.Context, c *cli, name string, given func(flag string) bool) (*store.Client, error) {
	if err := validateName("a backup policy", name); err != nil {
		return nil, err
	}
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	return client, r.resolve(ctx, c, client, given)
}

// resolve checks the flags, and finds the volumes and the target that they name.
func (r *policyRequest) resolve(ctx context.Context, c *cli, client *store.Client, given func(flag string) bool) (err error) {
	if given("schedule") {
		if _, err := provisioner.ParseSchedule("--schedule", r.spec.Schedule); err != nil {
			return err
		}
	}
	for flag, n := range map[string]int32{"--keep-last": r.spec.KeepLast, "--keep-daily": r.spec.KeepDaily, "--keep-weekly": r.spec.KeepWeekly} {
		if n < 0 {
			return backingimage.Errorf(backingimage.Invalid, "%s: %d is less than 0", flag, n)
		}
	}
	switch {
	case r.all:
		r.spec.VolumeSelector = &metav1.LabelSelector{}
	case r.selector != "":
		if r.spec.VolumeSelector, err = metav1.ParseToLabelSelector(r.selector); err != nil {
			return backingimage.Errorf(backingimage.Invalid, "--selector: %w; write it like app=db,tier!=test", err)
		}
	}
	for i, name := range r.spec.Volumes {
		v, err := findVolume(ctx, client, name)
		if err != nil {
			return err
		}
		r.spec.Volumes[i] = v.Name
	}
	if given("target") {
		_, err = targets.get(ctx, client, r.spec.Target)
	}
	return err
}

// countGiven is how many of the flags were given.
func countGiven(given func(string) bool, flags ...string) (n int) {
	for _, flag := range flags {
		if given(flag) {
			n++
		}
	}
	return n
}

func newPolicyCreateCommand(c *cli) *cobra.Command {
	var r policyRequest
	cmd := &cobra.Command{
		Use:   "create NAME --schedule CRON",
		Short: "Have volumes backed up by a schedule",
		Long: `Create makes a policy: backups of the volumes that it names, or that have the labels, whenever the schedule says. Of backups that were missed
while nothing ran, the last one is made. The policy removes complete backups of its own that it does not keep; of those that several of the numbers
keep, one is enough. Without any number it removes none.`,
		Example: "  plinth policy create nightly --schedule '0 2 * * *' --volume web-1,db-1 --keep-last 3 --keep-daily 7 --keep-weekly 8\n" +
			"  plinth policy create hourly --schedule @hourly --selector app=db --target nas --keep-last 24",
		Args: program.Exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			if countGiven(given, "volume", "selector", "all") != 1 {
				return program.UsageError(cmd, "say which volumes: --volume, --selector or --all")
			}
			return c.createPolicy(cmd.Context(), args[0], r, given)
		},
	}
	r.addTo(c, cmd)
	_ = cmd.MarkFlagRequired("schedule") // fails only for a flag that is not there
	return cmd
}

func (c *cli) createPolicy(ctx context.Context, name string, r policyRequest, given func(string) bool) error {
	client, err := r.open(ctx, c, name, given)
	if err != nil {
		return err
	}
	if r.spec.Target == "" {
		if r.spec.Target, err = c.defaultTarget(ctx); err != nil {
			return err
		}
	}
	p := &v1alpha1.BackupPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: r.spec}
	if _, err := client.Policies.Create(ctx, p, metav1.CreateOptions{}); err != nil {
		return apiError(err, "create", "backup policy", name)
	}
	return c.printPolicy("created", p)
}

func (c *cli) printPolicy(did string, p *v1alpha1.BackupPolicy) error {
	schedule := p.Spec.Schedule
	if p.Spec.Suspend {
		schedule += ", suspended"
	}
	_, err := fmt.Fprintf(c.out, "backup policy %s %s: volumes %s to target %s, %s; keeps %s\n", p.Name, did, policyVolumes(p), p.Spec.Target, schedule, policyKeeps(p.Spec))
	return err
}

func newPolicySetCommand(c *cli) *cobra.Command {
	var r policyRequest
	cmd := &cobra.Command{
		Use:               "set NAME",
		Short:             "Change a backup policy",
		Long:              "Set changes a policy; flags that are not given stay as they are. What is not kept any more is removed at once.",
		Example:           "  plinth policy set nightly --keep-daily 14\n  plinth policy set nightly --suspend\n  plinth policy set nightly --suspend=false",
		Args:              program.Exactly("NAME"),
		ValidArgsFunction: policies.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			if !slices.ContainsFunc(policyFlags, given) {
				return program.UsageError(cmd, "say what to change: --%s", strings.Join(policyFlags, ", --"))
			}
			if countGiven(given, "volume", "selector", "all") > 1 {
				return program.UsageError(cmd, "give one of --volume, --selector and --all")
			}
			return c.setPolicy(cmd.Context(), args[0], r, given)
		},
	}
	r.addTo(c, cmd)
	return cmd
}

func (c *cli) setPolicy(ctx context.Context, name string, r policyRequest, given func(string) bool) error {
	client, err := r.open(ctx, c, name, given)
	if err != nil {
		return err
	}
	p, err := policies.modify(ctx, client, name, func(p *v1alpha1.BackupPolicy) { r.apply(&p.Spec, given) })
	if err != nil {
		return err
	}
	return c.printPolicy("changed", p)
}
