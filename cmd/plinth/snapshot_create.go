package main

import (
	"context"
	"fmt"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"

	"plinth.dev/plinth/cmd/internal/program"
	"plinth.dev/plinth/provisioner"
)

// snapshotRequest is what the flags of `snapshot create` ask for.
type snapshotRequest struct {
	volume, name, kind string
	parameters         []string
	output             output
	wait               bool
	timeout            time.Duration
}

func newSnapshotCreateCommand(c *cli) *cobra.Command {
	r := snapshotRequest{}
	cmd := &cobra.Command{
		Use:   "create VOLUME NAME",
		Short: "Take a snapshot of a volume",
		Long: "Create takes a point in time of a volume, which may be mounted and written to: a filesystem that is mounted on the volume's node is\n" +
			"frozen for that moment, so that it is clean in the snapshot. The same command again finds the snapshot it took.\n" +
			"With --type bi the snapshot is a backing image, from which volumes start on every node.",
		Example: "  plinth snapshot create web-1 before-upgrade\n" +
			"  plinth snapshot create web-1 golden --type bi --parameter exportType=qcow2",
		Args:              program.Exactly("VOLUME", "NAME"),
		ValidArgsFunction: volumes.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.volume, r.name = args[0], args[1]
			return c.createSnapshot(cmd.Context(), r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.kind, "type", "", "`type`: snap (on the volume's disk, the default), bi (a backing image) or bak (a backup)")
	f.StringArrayVar(&r.parameters, "parameter", nil, "VolumeSnapshotClass parameter `key=value`; may be repeated")
	f.BoolVar(&r.wait, "wait", true, "return when volumes can be made from it")
	f.DurationVar(&r.timeout, "timeout", defaultImageTimeout, "with --wait: how long to wait; the work goes on after it")
	r.output.addFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{provisioner.TypeSnap, provisioner.TypeImage, provisioner.TypeBackup}, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that is not there
	return cmd
}

func (c *cli) createSnapshot(ctx context.Context, r snapshotRequest) error {
	parameters, err := parseParameters(r.parameters)
	if err == nil {
		err = setParameter(parameters, "--type", "type", r.kind)
	}
	if err == nil {
		_, err = provisioner.ParseSnapshotParameters(parameters)
	}
	if err == nil {
		err = validateName("a snapshot", r.name)
	}
	if err != nil {
		return err
	}
	_, v, driver, err := c.reachVolume(ctx, r.volume)
	if err != nil {
		return err
	}
	defer driver.close()
	answer, err := driver.controller.CreateSnapshot(ctx, &csispec.CreateSnapshotRequest{SourceVolumeId: v.Name, Name: r.name, Parameters: parameters})
	if err != nil {
		return csiError(ctx, err)
	}
	s := answer.GetSnapshot()
	if r.wait && !s.GetReadyToUse() {
		if s, err = c.waitForSnapshot(ctx, driver, s, r); err != nil {
			return err
		}
	}
	return r.output.print(c.out, snapshotJSON(s), []string{r.name}, func() error {
		_, err := fmt.Fprintf(c.out, "snapshot %s of volume %s taken (%s, %s)\n", r.name, r.volume, sizeText(s.GetSizeBytes()), s.GetSnapshotId())
		return err
	})
}

// waitForSnapshot returns the snapshot when volumes can be made from it.
func (c *cli) waitForSnapshot(ctx context.Context, driver *csiClient, s *csispec.Snapshot, r snapshotRequest) (*csispec.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		answer, err := driver.controller.GetSnapshot(ctx, &csispec.GetSnapshotRequest{SnapshotId: s.GetSnapshotId()})
		if err != nil {
			return false, csiError(ctx, err)
		}
		s = answer.GetSnapshot()
		meter.say("snapshot " + r.name + " is taken; what is made of it is not complete yet")
		return s.GetReadyToUse(), nil
	})
	return s, timedOut(err, r.timeout, "snapshot %s is not ready; it goes on", r.name)
}

// snapshotJSON is a snapshot as CSI has it.
func snapshotJSON(s *csispec.Snapshot) map[string]any {
	return map[string]any{
		"snapshotId": s.GetSnapshotId(), "sourceVolumeId": s.GetSourceVolumeId(), "sizeBytes": s.GetSizeBytes(), "readyToUse": s.GetReadyToUse(),
		"creationTime": s.GetCreationTime().AsTime().Format(time.RFC3339Nano),
	}
}
