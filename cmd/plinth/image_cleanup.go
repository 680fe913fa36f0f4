package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// requestCleanup is the patch that asks the controller to remove a copy.
const requestCleanup = `{"spec":{"cleanupRequested":true}}`

func newImageCleanupCommand(c *cli) *cobra.Command {
	var disks []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "cleanup NAME --disk DISK...",
		Short: "Remove an image's copies from disks, now",
		Long: "Cleanup removes copies that nothing needs without waiting for the time after which they would go by themselves.\n" +
			"A copy stays, and cleanup says why, while a volume waits for it, while the image asks for one on that disk, and while\n" +
			"fewer than the image's minimum number of copies would be ready without it.",
		Example: "  plinth image cleanup fedora-42 --disk 3e1fdc0c\n  plinth image cleanup fedora-42 --disk node-2/mnt/nvme1",
		Args:    program.Exactly("NAME"),

		ValidArgsFunction: images.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(disks) == 0 {
				return backingimage.Errorf(backingimage.Invalid, "--disk: name the disk to remove the copy from; plinth image show %s lists those that have one", args[0])
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			image, err := images.get(cmd.Context(), client, args[0])
			if err != nil {
				return err
			}
			for _, disk := range disks {
				if err := c.cleanUp(cmd.Context(), client, image, disk, timeout); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&disks, "disk", nil, diskRefHelp+" to remove the copy from; may be repeated")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait for the answer, for each disk")
	return cmd
}

// cleanUp asks for one copy to be removed and waits for the answer. NotFound when there is none; Precondition, with the
// reason, when it is needed.
func (c *cli) cleanUp(ctx context.Context, client *store.Client, image *v1alpha1.BackingImage, ref string, timeout time.Duration) error {
	found, err := findCopy(ctx, client, image, ref)
	if err != nil {
		return err
	}
	name, disk := found.Name, found.Spec.DiskUUID
	if _, err := client.Copies.Patch(ctx, name, types.MergePatchType, []byte(requestCleanup), metav1.PatchOptions{}); err != nil {
		return apiError(err, "ask for the cleanup of", "copy", name)
	}
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = poll(waiting, func(ctx context.Context) (bool, error) {
		now, err := copies.get(ctx, client, name)
		switch {
		case backingimage.Is(err, backingimage.NotFound):
			return true, nil
		case err != nil:
			return false, err
		case !now.Spec.CleanupRequested:
			return false, backingimage.Errorf(backingimage.Precondition, "the copy of image %s on disk %s %s", image.Name, disk, now.Status.Message)
		}
		return false, nil
	})
	if err := timedOut(err, timeout, "the copy of image %s on disk %s is neither removed nor refused; is the controller running?", image.Name, disk); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "copy of image %s removed from disk %s\n", image.Name, disk)
	return err
}
