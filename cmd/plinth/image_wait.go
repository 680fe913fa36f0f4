package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// defaultImageTimeout is how long a download may take before a person wants the prompt back.
const defaultImageTimeout = time.Hour

func newImageWaitCommand(c *cli) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until an image is ready",
		Long: "Wait shows the progress and returns when a copy of the image is ready. When the image has failed and trying again\n" +
			"cannot help, it ends with the reason and its exit code (see plinth help exit-codes).",
		Args:              program.Exactly("NAME"),
		ValidArgsFunction: images.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			return c.waitForImage(cmd.Context(), client, args[0], timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", defaultImageTimeout, "how long to wait; the download goes on after it")
	return cmd
}

// waitForImage shows the progress until a copy is ready, the image has failed for good, or the time is over.
func (c *cli) waitForImage(ctx context.Context, client *store.Client, name string, timeout time.Duration) error {
	if _, err := images.get(ctx, client, name); err != nil {
		return err // a name that is wrong now is wrong in an hour
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	meter := c.newMeter()
	var last progress
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		now, err := imageProgress(ctx, client, name)
		if err != nil {
			return false, err
		}
		last = now
		meter.show(last)
		return last.ready, last.failure
	})
	meter.end()
	if err != nil {
		return timedOut(err, timeout, "image %s is not ready: %s; it goes on, see: plinth image show %s", name, last.sentence(), name)
	}
	_, err = fmt.Fprintf(c.out, "image %s is ready (%s)\n", name, sizeText(last.virtualBytes))
	return err
}

// imageProgress is where an image is now. NotFound when it is gone.
func imageProgress(ctx context.Context, client *store.Client, name string) (progress, error) {
	image, err := images.get(ctx, client, name)
	if err != nil {
		return progress{}, err
	}
	of, err := copiesOf(ctx, client, image)
	if err != nil {
		return progress{}, err
	}
	return summarizeCopies(image, of), nil
}

// readyImage is an image that has a ready copy, with all that its status then says, which follows a moment after the copy's;
// nil, and where it is instead, when it has none. NotFound.
func readyImage(ctx context.Context, client *store.Client, name string) (image *v1alpha1.BackingImage, instead string, err error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	err = poll(ctx, func(ctx context.Context) (bool, error) {
		now, err := images.get(ctx, client, name)
		if err != nil {
			return true, err
		}
		of, err := copiesOf(ctx, client, now)
		if err != nil {
			return true, err
		}
		if p := summarizeCopies(now, of); !p.ready {
			instead = p.sentence()
			return true, nil
		}
		image = now
		return now.Status.State == v1alpha1.CopyReady && now.Status.ContentDigest != "", nil
	})
	return image, instead, timedOut(err, apiTimeout, "the status of image %s does not say what its ready copy is; does the controller run?", name)
}

// summarizeCopies is an image's progress: that of its furthest copy.
func summarizeCopies(image *v1alpha1.BackingImage, of []*v1alpha1.BackingImageCopy) progress {
	p := progress{what: "image " + image.Name, state: imageState(image), message: image.Status.Message}
	var best *v1alpha1.BackingImageCopy
	for _, c := range of {
		if best == nil || rank(c) > rank(best) || rank(c) == rank(best) && c.Status.Progress > best.Status.Progress {
			best = c
		}
	}
	if best != nil {
		p = progressOf(best)
		p.what = "image " + image.Name
	}
	p.virtualBytes = max(p.virtualBytes, image.Status.VirtualSize)
	if best != nil && best.Final() {
		p.failure = backingimage.Errorf(backingimage.KindNamed(best.Status.Reason), "image %s failed: %s", image.Name, best.Status.Message)
	}
	return p
}

// rank orders copies by how near they are to being of use.
func rank(c *v1alpha1.BackingImageCopy) int {
	switch {
	case c.Status.State == v1alpha1.CopyReady:
		return 4
	case c.Status.State == v1alpha1.CopyInProgress:
		return 3
	case c.Final():
		return 0
	case c.Status.State == v1alpha1.CopyFailed:
		return 1
	}
	return 2
}
