package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/provisioner"
)

var volumes = &noun[*v1alpha1.Volume, *v1alpha1.VolumeList]{
	kind: "Volume", one: "volume", many: "volumes",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.Volume, *v1alpha1.VolumeList] { return c.Volumes },
	empty:    "Make one: plinth volume create NAME --image IMAGE",
	header:   []string{"NAME", "STATE", "SIZE", "IMAGE", "NODE", "DEVICE", "AGE", "MESSAGE"},
	row:      volumeRow,
	show:     showVolume,
}

func newVolumeCommand(c *cli) *cobra.Command {
	return group("volume", "Volumes", "Volumes are block devices with a filesystem, made from an image or empty.\n"+
		"Create, rm, expand, clone, mount and unmount speak CSI with the driver's socket, as an orchestrator would; ls and show read the API.",
		newVolumeCreateCommand(c), volumes.lsCommand(c), volumes.showCommand(c), newVolumeRmCommand(c),
		newVolumeExpandCommand(c), newVolumeCloneCommand(c), newVolumeExportCommand(c), newVolumeMountCommand(c), newVolumeUnmountCommand(c))
}

func volumeState(v *v1alpha1.Volume) string {
	if v.DeletionTimestamp != nil {
		return "deleting"
	}
	return string(cmp.Or(v.Status.State, v1alpha1.VolumePending))
}

func volumeRow(v *v1alpha1.Volume, now time.Time) []string {
	return []string{
		v.Name, volumeState(v), sizeText(volumeBytes(v)), volumeOrigin(v), v.Spec.NodeName, v.Status.Device,
		ageText(now, v.CreationTimestamp), beginning(v.Status.Message),
	}
}

// volumeBytes is the size that a volume has, or shall have while it has none.
func volumeBytes(v *v1alpha1.Volume) int64 {
	return cmp.Or(v.Status.CapacityBytes, v.Spec.CapacityBytes)
}

// volumeOrigin is what a volume was made from.
func volumeOrigin(v *v1alpha1.Volume) string {
	if v.Spec.Image != nil {
		return v.Spec.Image.Name
	}
	return provisioner.SourceOf(v)
}

// volumeCopied is the volume or snapshot whose content a volume has, where the image alone does not say it.
func volumeCopied(v *v1alpha1.Volume) string {
	if v.Spec.Image == nil {
		return ""
	}
	return provisioner.SourceOf(v)
}

func showVolume(_ context.Context, w io.Writer, _ *store.Client, v *v1alpha1.Volume, now time.Time) error {
	asked := v.Spec.Name
	if asked == v.Name {
		asked = ""
	}
	fields := []field{
		{"Name", v.Name},
		{"Asked for as", asked},
		{"State", volumeState(v)},
		{"Message", v.Status.Message},
		{"Size", exactSizeText(volumeBytes(v))},
	}
	if v.Status.CapacityBytes > 0 && v.Spec.CapacityBytes != v.Status.CapacityBytes {
		fields = append(fields, field{"Size wanted", exactSizeText(v.Spec.CapacityBytes)})
	}
	if c := v.Spec.Claim; c != nil {
		fields = append(fields, field{"Claim", c.Namespace + "/" + c.Name})
	}
	fields = append(fields,
		field{"Made from", volumeOrigin(v)},
		field{"By way of", volumeCopied(v)},
		field{"Node", v.Spec.NodeName},
		field{"Disk", v.Spec.DiskUUID},
		field{"Device", v.Status.Device},
		field{"Mkfs parameters", v.Spec.MkfsParams},
	)
	if v.Spec.Partition > 0 {
		fields = append(fields, field{"Partition", fmt.Sprint(v.Spec.Partition)})
	}
	for i, key := range slices.Sorted(maps.Keys(v.Spec.Parameters)) {
		if i == 0 {
			fields = append(fields, field{"Parameters", "of its StorageClass"})
		}
		fields = append(fields, field{"  " + key, v.Spec.Parameters[key]})
	}
	return printFields(w, append(fields, field{"Created", timeText(now, v.CreationTimestamp)})...)
}

// findVolume returns the volume that was asked for as name, or whose ID it is. NotFound.
func findVolume(ctx context.Context, client *store.Client, name string) (*v1alpha1.Volume, error) {
	v, err := volumes.get(ctx, client, provisioner.VolumeID(name))
	if !backingimage.Is(err, backingimage.NotFound) {
		return v, err
	}
	_, all, lerr := volumes.list(ctx, client, metav1.ListOptions{})
	if lerr != nil {
		return nil, lerr
	}
	if i := slices.IndexFunc(all, func(v *v1alpha1.Volume) bool { return v.Name == name || v.Spec.Name == name }); i >= 0 {
		return all[i], nil
	}
	return nil, backingimage.Errorf(backingimage.NotFound, "there is no volume %q (plinth volume ls shows those that are)", name)
}
