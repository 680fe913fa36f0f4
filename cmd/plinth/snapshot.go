package main

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner"
)

var snapshots = &noun[*v1alpha1.Snapshot, *v1alpha1.SnapshotList]{
	kind: "Snapshot", one: "snapshot", many: "snapshots",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.Snapshot, *v1alpha1.SnapshotList] {
		return c.Snapshots
	},
	empty:  "Take one: plinth snapshot create VOLUME NAME",
	header: []string{"NAME", "VOLUME", "TYPE", "STATE", "SIZE", "NODE", "TAKEN", "MESSAGE"},
	row:    snapshotRow,
	show:   showSnapshot,
}

func newSnapshotCommand(c *cli) *cobra.Command {
	return group("snapshot", "Snapshots", "Snapshots are points in time of volumes, on the volumes' disks. A volume can be made from one on any node; and a snapshot\n"+
		"stays when its volume goes.\nCreate, rm and restore speak CSI with the driver's socket, as an orchestrator would; ls and show read the API.",
		newSnapshotCreateCommand(c), snapshots.lsCommand(c), snapshots.showCommand(c), newSnapshotRmCommand(c), newSnapshotRestoreCommand(c))
}

func snapshotState(s *v1alpha1.Snapshot) string {
	if s.DeletionTimestamp != nil {
		return "deleting"
	}
	return string(cmp.Or(s.Status.State, v1alpha1.SnapshotPending))
}

func snapshotMessage(s *v1alpha1.Snapshot) string {
	if c := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		return c.Message
	}
	return ""
}

// snapshotTaken is when the point in time was taken, or, before that, when it was asked for.
func snapshotTaken(s *v1alpha1.Snapshot) metav1.Time {
	if s.Status.CreationTime != nil {
		return metav1.NewTime(s.Status.CreationTime.Time)
	}
	return s.CreationTimestamp
}

func snapshotRow(s *v1alpha1.Snapshot, now time.Time) []string {
	return []string{
		s.Name, s.Spec.Volume, string(s.Spec.Type), snapshotState(s), sizeText(s.Status.Bytes), s.Spec.NodeName,
		ageText(now, snapshotTaken(s)), beginning(snapshotMessage(s)),
	}
}

func snapshotHandle(s *v1alpha1.Snapshot) string {
	return provisioner.Handle{Type: provisioner.TypeSnap, Volume: s.Spec.Volume, Name: s.Name}.String()
}

func showSnapshot(_ context.Context, w io.Writer, _ *store.Client, s *v1alpha1.Snapshot, now time.Time) error {
	asked := s.Spec.Name
	if asked == s.Name {
		asked = ""
	}
	image := ""
	if s.Spec.Image != nil {
		image = s.Spec.Image.Name
	}
	return printFields(w,
		field{"Name", s.Name}, field{"Asked for as", asked}, field{"Handle", snapshotHandle(s)}, field{"State", snapshotState(s)}, field{"Message", snapshotMessage(s)},
		field{"Volume", s.Spec.Volume}, field{"Type", string(s.Spec.Type)}, field{"For volume", s.Spec.TargetVolume}, field{"Size", exactSizeText(s.Status.Bytes)}, field{"Image", image},
		field{"Node", s.Spec.NodeName}, field{"Disk", s.Spec.DiskUUID}, field{"Taken", timeText(now, snapshotTaken(s))})
}

// findSnapshot returns the handle of the snapshot that was asked for as name, or whose ID or handle that is. NotFound.
func findSnapshot(ctx context.Context, client *store.Client, name string) (string, error) {
	if strings.Contains(name, "://") {
		_, err := provisioner.ParseHandle(name)
		return name, err
	}
	s, err := snapshots.get(ctx, client, provisioner.SnapshotID(name))
	if err == nil {
		return snapshotHandle(s), nil
	}
	if !backingimage.Is(err, backingimage.NotFound) {
		return "", err
	}
	_, all, lerr := snapshots.list(ctx, client, metav1.ListOptions{})
	if lerr != nil {
		return "", lerr
	}
	if i := slices.IndexFunc(all, func(s *v1alpha1.Snapshot) bool { return s.Name == name || s.Spec.Name == name }); i >= 0 {
		return snapshotHandle(all[i]), nil
	}
	return "", backingimage.Errorf(backingimage.NotFound, "there is no snapshot %q (plinth snapshot ls shows those that are; one that is an image is in plinth image ls)", name)
}
