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

var disks = &noun[*v1alpha1.Disk, *v1alpha1.DiskList]{
	kind: "Disk", one: "disk", many: "disks",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.Disk, *v1alpha1.DiskList] { return c.Disks },
	empty:    "`plinth standalone --disk PATH` registers one.",
	header:   []string{"UUID", "NODE", "PATH", "READY", "SCHEDULABLE", "CAPACITY", "AVAILABLE", "FILESYSTEM", "TAGS", "AGE"},
	row:      diskRow,
	show:     showDisk,
}

func newDiskCommand(c *cli) *cobra.Command {
	return group("disk", "Places for copies and volumes", "Disks are directories that hold copies of images and volumes. Each is known by the UUID stored on it.",
		disks.lsCommand(c), disks.showCommand(c))
}

func diskRow(d *v1alpha1.Disk, now time.Time) []string {
	return []string{
		d.Name, d.Spec.NodeName, d.Spec.Path, conditionText(d.Status.Conditions, v1alpha1.ConditionReady), yesNo(d.Schedulable()),
		sizeText(d.Status.CapacityBytes), sizeText(d.Status.AvailableBytes), filesystemText(d), strings.Join(d.Spec.Tags, ","),
		ageText(now, d.CreationTimestamp),
	}
}

func showDisk(_ context.Context, w io.Writer, _ *store.Client, d *v1alpha1.Disk, now time.Time) error {
	return printFields(w, "",
		field{"UUID", d.Name},
		field{"Node", d.Spec.NodeName},
		field{"Path", d.Spec.Path},
		field{"Type", d.Spec.Type},
		field{"Ready", conditionText(d.Status.Conditions, v1alpha1.ConditionReady)},
		field{"Schedulable", yesNo(d.Schedulable())},
		field{"Eviction requested", yesNo(d.Spec.EvictionRequested)},
		field{"Tags", strings.Join(d.Spec.Tags, ",")},
		field{"Capacity", exactSizeText(d.Status.CapacityBytes)},
		field{"Available", exactSizeText(d.Status.AvailableBytes)},
		field{"Filesystem", filesystemText(d)},
		field{"Orphan volumes", strings.Join(d.Status.Orphans, ", ")},
		field{"Created", timeText(now, d.CreationTimestamp)},
	)
}

func filesystemText(d *v1alpha1.Disk) string {
	if d.Status.Pool {
		return d.Status.Filesystem + " (pool file)"
	}
	return d.Status.Filesystem
}
