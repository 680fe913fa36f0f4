package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

var disks = &noun[*v1alpha1.Disk, *v1alpha1.DiskList]{
	kind: "Disk", one: "disk", many: "disks",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.Disk, *v1alpha1.DiskList] { return c.Disks },
	empty:    "`plinth standalone --disk PATH` or `plinth disk add PATH` registers one.",
	header:   []string{"UUID", "NODE", "PATH", "READY", "FULL", "SCHEDULABLE", "CAPACITY", "AVAILABLE", "FILESYSTEM", "TAGS", "ORPHANS", "AGE"},
	row:      diskRow,
	show:     showDisk,
}

func newDiskCommand(c *cli) *cobra.Command {
	cmd := group("disk", "Places for copies and volumes", "Disks are directories that hold copies of images and volumes. Each is known by the UUID stored on it, wherever it is mounted. DISK is that\n"+
		"UUID, the beginning of it, the disk's path, or NODE/PATH where several nodes have that path.",
		disks.lsCommand(c), disks.showFoundCommand(c, "DISK", findDisk), newDiskAddCommand(c), newDiskRmCommand(c), newDiskOrphansCommand(c))
	cmd.AddCommand(placedDisks.commands(c)...)
	return cmd
}

func diskRow(d *v1alpha1.Disk, now time.Time) []string {
	return []string{
		d.Name, d.Spec.NodeName, d.Spec.Path, conditionWord(d.Status.Conditions, v1alpha1.ConditionReady), fullWord(d), yesNo(d.Schedulable()),
		sizeText(d.Status.CapacityBytes), sizeText(d.Status.AvailableBytes), filesystemText(d), strings.Join(d.Spec.Tags, ","), countText(len(d.Status.Orphans)),
		ageText(now, d.CreationTimestamp),
	}
}

// fullWord is yes for a disk without room for anything new.
func fullWord(d *v1alpha1.Disk) string {
	if meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionFull) {
		return "yes"
	}
	return ""
}

// fullText is why there is no room for anything new, "" when there is.
func fullText(d *v1alpha1.Disk) string {
	if c := meta.FindStatusCondition(d.Status.Conditions, v1alpha1.ConditionFull); c != nil && c.Status == metav1.ConditionTrue {
		return "yes: " + c.Message
	}
	return ""
}

func showDisk(ctx context.Context, w io.Writer, client *store.Client, d *v1alpha1.Disk, now time.Time) error {
	of, vs, err := onDisk(ctx, client, d.Name)
	if err != nil {
		return err
	}
	err = printFields(w,
		field{"UUID", d.Name},
		field{"Node", d.Spec.NodeName},
		field{"Path", d.Spec.Path},
		field{"Type", d.Spec.Type},
		field{"Ready", conditionText(d.Status.Conditions, v1alpha1.ConditionReady)},
		field{"Full", fullText(d)},
		field{"Schedulable", yesNo(d.Schedulable())},
		field{"Eviction requested", yesNo(d.Spec.EvictionRequested)},
		field{"Tags", strings.Join(d.Spec.Tags, ",")},
		field{"Capacity", exactSizeText(d.Status.CapacityBytes)},
		field{"Available", exactSizeText(d.Status.AvailableBytes)},
		field{"Filesystem", filesystemText(d)},
		field{"Orphans", orphansText(d)},
		field{"Created", timeText(now, d.CreationTimestamp)},
	)
	if err != nil {
		return err
	}
	return printOnDisk(w, of, vs)
}

// printOnDisk prints what is on a disk, copies first.
func printOnDisk(w io.Writer, of []*v1alpha1.BackingImageCopy, vs []*v1alpha1.Volume) error {
	var rows [][]string
	for _, c := range of {
		rows = append(rows, []string{"copy", c.Spec.Image, string(cmp.Or(c.Status.State, v1alpha1.CopyPending)), sizeText(c.Status.RealSize), "", beginning(c.Status.Message)})
	}
	for _, v := range vs {
		rows = append(rows, []string{"volume", v.Name, volumeState(v), sizeText(volumeBytes(v)), v.Status.Device, beginning(v.Status.Message)})
	}
	if len(rows) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return printTable(w, []string{"ON IT", "NAME", "STATE", "SIZE", "DEVICE", "MESSAGE"}, rows)
}

func orphansText(d *v1alpha1.Disk) string {
	if len(d.Status.Orphans) == 0 {
		return ""
	}
	return fmt.Sprintf("%d; see: plinth disk orphans %s", len(d.Status.Orphans), d.Name)
}

func filesystemText(d *v1alpha1.Disk) string {
	if d.Status.Pool {
		return d.Status.Filesystem + " (pool file)"
	}
	return d.Status.Filesystem
}
