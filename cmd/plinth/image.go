package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/store"
)

var images = &noun[*v1alpha1.BackingImage, *v1alpha1.BackingImageList]{
	kind: "BackingImage", one: "image", many: "images",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.BackingImage, *v1alpha1.BackingImageList] {
		return c.Images
	},
	empty:  "Make one: plinth image create NAME --url https://…",
	header: []string{"NAME", "STATE", "PROGRESS", "COPIES", "VIRTUAL SIZE", "REAL SIZE", "VOLUMES", "AGE", "MESSAGE"},
	row:    imageRow,
	show:   showImage,
}

var copies = &noun[*v1alpha1.BackingImageCopy, *v1alpha1.BackingImageCopyList]{
	kind: "BackingImageCopy", one: "copy", many: "copies",
	resource: func(c *store.Client) *store.Resource[*v1alpha1.BackingImageCopy, *v1alpha1.BackingImageCopyList] {
		return c.Copies
	},
}

func newImageCommand(c *cli) *cobra.Command {
	return group("image", "Backing images", "Backing images are what volumes start from: fetched once, verified, kept as copies on disks.",
		newImageCreateCommand(c), newImageUploadCommand(c), newImageDownloadCommand(c), images.lsCommand(c), images.showCommand(c), newImageSetCommand(c), newImageRmCommand(c), newImageWaitCommand(c), newImageVerifyCommand(c), newImageCleanupCommand(c))
}

// imageState is the state as people read it: an image that is being deleted has no other.
func imageState(i *v1alpha1.BackingImage) string {
	if i.DeletionTimestamp != nil {
		return "deleting"
	}
	return string(cmp.Or(i.Status.State, v1alpha1.CopyPending))
}

func imageRow(i *v1alpha1.BackingImage, now time.Time) []string {
	progress := ""
	if i.Status.State != v1alpha1.CopyReady {
		progress = fmt.Sprintf("%d %%", i.Status.Progress)
	}
	return []string{
		i.Name, imageState(i), progress, i.Status.Copies, sizeText(i.Status.VirtualSize), sizeText(i.Status.RealSize),
		fmt.Sprint(len(i.Status.Volumes)), ageText(now, i.CreationTimestamp), beginning(i.Status.Message),
	}
}

func showImage(ctx context.Context, w io.Writer, client *store.Client, i *v1alpha1.BackingImage, now time.Time) error {
	of, err := copiesOf(ctx, client, i)
	if err != nil {
		return err
	}
	if err := printFields(w, imageFields(i, now)...); err != nil {
		return err
	}
	return printCopies(w, i, of, now)
}

func imageFields(i *v1alpha1.BackingImage, now time.Time) []field {
	fields := []field{
		{"Name", i.Name},
		{"State", imageState(i)},
		{"Message", i.Status.Message},
		{"Warning", i.Status.Warning},
		{"Source", string(i.Spec.SourceType)},
	}
	for _, key := range slices.Sorted(maps.Keys(i.Spec.SourceParameters)) {
		fields = append(fields, field{"  " + key, source.RedactURL(string(i.Spec.SourceParameters[key]))})
	}
	return append(fields,
		field{"Resolved source", i.Status.ResolvedSource},
		field{"Checksum wanted", i.Spec.Checksum},
		field{"Checksum (SHA-512)", i.Status.Checksum},
		field{"Content digest", i.Status.ContentDigest},
		field{"Format", i.Status.Format},
		field{"Source size", exactSizeText(i.Status.Size)},
		field{"Virtual size", exactSizeText(i.Status.VirtualSize)},
		field{"Real size", exactSizeText(i.Status.RealSize)},
		field{"Copies", i.Status.Copies},
		field{"Prefetch", yesNo(i.Spec.Prefetch)},
		field{"Node selector", strings.Join(i.Spec.NodeSelector, ",")},
		field{"Disk selector", strings.Join(i.Spec.DiskSelector, ",")},
		field{"Allowed namespaces", strings.Join(i.Spec.AllowedNamespaces, ",")},
		field{"Volumes", strings.Join(i.Status.Volumes, ", ")},
		field{"Ready", conditionText(i.Status.Conditions, v1alpha1.ConditionReady)},
		field{"Healthy", conditionText(i.Status.Conditions, v1alpha1.ConditionHealthy)},
		field{"Created", timeText(now, i.CreationTimestamp)},
	)
}

// copiesOf returns the copies of an image; those of a former image of its name are not its.
func copiesOf(ctx context.Context, client *store.Client, i *v1alpha1.BackingImage) ([]*v1alpha1.BackingImageCopy, error) {
	_, all, err := copies.list(ctx, client, metav1.ListOptions{FieldSelector: "spec.image=" + i.Name})
	return slices.DeleteFunc(all, func(c *v1alpha1.BackingImageCopy) bool { return c.Spec.ImageUID != string(i.UID) }), err
}
