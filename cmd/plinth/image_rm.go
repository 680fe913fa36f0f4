package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

func newImageRmCommand(c *cli) *cobra.Command {
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"delete"},
		Short:   "Delete images and their copies",
		Long: "Rm deletes images and their copies. Volumes that were made from an image keep their data and go on working;\n" +
			"while a volume still waits for its data, its image is not deleted.",
		Args:              program.AtLeastOne("NAME"),
		ValidArgsFunction: images.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := c.removeImage(cmd.Context(), client, name, wait, timeout); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", true, "return when the image is gone")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for that; the deletion goes on after it")
	return cmd
}

func (c *cli) removeImage(ctx context.Context, client *store.Client, name string, wait bool, timeout time.Duration) error {
	image, err := images.get(ctx, client, name)
	if err != nil {
		return err
	}
	waiting, err := volumesWaitingFor(ctx, client, image)
	if err != nil {
		return err
	}
	if len(waiting) > 0 {
		return backingimage.Errorf(backingimage.InUse, "image %s is still needed by volumes that wait for it: %s; wait until they are ready, or delete them first",
			name, strings.Join(waiting, ", "))
	}
	err = client.Images.Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(image.UID))})
	if err := backingimage.IgnoreNotFound(apiError(err, "delete", "image", name)); err != nil {
		return err
	}
	if !wait {
		_, err = fmt.Fprintf(c.out, "image %s is being deleted\n", name)
		return err
	}
	if err := images.waitUntilGone(ctx, c, client, image, timeout, deletionMessage); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "image %s deleted\n", name)
	return err
}

func volumesWaitingFor(ctx context.Context, client *store.Client, image *v1alpha1.BackingImage) ([]string, error) {
	_, all, err := volumes.list(ctx, client, metav1.ListOptions{})
	var waiting []string
	for _, v := range all {
		if v.Spec.Image != nil && v.Spec.Image.UID == string(image.UID) && v.Waits() {
			waiting = append(waiting, v.Name)
		}
	}
	return waiting, err
}

// deletionMessage is what the image's status says of its deletion; "" while that is of the time before.
func deletionMessage(image *v1alpha1.BackingImage) string {
	if image.Status.ObservedGeneration != image.Generation {
		return ""
	}
	return image.Status.Message
}
