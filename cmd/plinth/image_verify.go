package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

func newImageVerifyCommand(c *cli) *cobra.Command {
	v := &verification{cli: c}
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Read an image's copies again and repair what is damaged",
		Long: "Verify has the copies of an image read again and compared with their manifests, byte for byte. What is damaged is repaired:\n" +
			"from another copy, or from the image's source. It shows the progress, and what came of each copy. When a copy stays damaged,\n" +
			"or cannot be read, it ends with the code of that (see plinth help exit-codes): 8 for damage.\n\n" +
			"Every copy is read again from time to time without being asked for (plinth standalone --scrub-interval); this is at once, and\n" +
			"as fast as the disk goes.",
		Example:           "  plinth image verify fedora-42\n  plinth image verify fedora-42 --disk node-2/mnt/nvme1\n  plinth image verify fedora-42 --wait=false",
		Args:              program.Exactly("NAME"),
		ValidArgsFunction: images.complete(c),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if v.client, err = c.client(); err != nil {
				return err
			}
			return v.run(cmd.Context(), args[0])
		},
	}
	cmd.Flags().StringVar(&v.disk, "disk", "", diskRefHelp+" whose copy to verify (default: all copies)")
	cmd.Flags().BoolVar(&v.wait, "wait", true, "return when the copies are verified, and repaired where need be")
	cmd.Flags().DurationVar(&v.timeout, "timeout", defaultImageTimeout, "how long to wait for that; the verification goes on after it")
	return cmd
}

// verification is the verification of an image's copies, as a person asks for it.
type verification struct {
	*cli
	client  *store.Client
	disk    string // "": all
	wait    bool
	timeout time.Duration

	image *v1alpha1.BackingImage
	asked metav1.MicroTime
}

func (v *verification) run(ctx context.Context, name string) (err error) {
	if v.image, err = images.get(ctx, v.client, name); err != nil {
		return err
	}
	if v.disk != "" {
		c, err := findCopy(ctx, v.client, v.image, v.disk)
		if err != nil {
			return err
		}
		v.disk = c.Spec.DiskUUID
	}
	of, err := v.copies(ctx)
	if err != nil {
		return err
	}
	if len(of) == 0 {
		return backingimage.Errorf(backingimage.NotFound, "%s; see: plinth image show %s", v.none(), name)
	}
	v.asked = metav1.NewMicroTime(v.clock.Now().Truncate(time.Microsecond))
	for _, c := range of { // another machine's clock may be ahead
		if last := c.Spec.VerifyRequestedTime; last != nil && !last.Time.Before(v.asked.Time) {
			v.asked = metav1.NewMicroTime(last.Add(time.Microsecond))
		}
	}
	for _, c := range of {
		if err := v.ask(ctx, c); err != nil {
			return err
		}
	}
	if !v.wait {
		_, err = fmt.Fprintf(v.out, "%d copies of image %s are being verified; see: plinth image show %s\n", len(of), name, name)
		return err
	}
	of, err = v.follow(ctx)
	if err != nil {
		return err
	}
	return v.tell(of)
}

// copies are those that are meant.
func (v *verification) copies(ctx context.Context) ([]*v1alpha1.BackingImageCopy, error) {
	of, err := copiesOf(ctx, v.client, v.image)
	return slices.DeleteFunc(of, func(c *v1alpha1.BackingImageCopy) bool { return v.disk != "" && c.Spec.DiskUUID != v.disk }), err
}

// none says that there is no copy of those that are meant.
func (v *verification) none() string {
	if v.disk == "" {
		return fmt.Sprintf("image %s has no copy yet", v.image.Name)
	}
	return fmt.Sprintf("--disk: image %s has no copy on disk %s", v.image.Name, v.disk)
}

// ask writes the wish into a copy's object, where its agent finds it, now or when it is back.
func (v *verification) ask(ctx context.Context, c *v1alpha1.BackingImageCopy) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"verifyRequestedTime": v.asked}})
	if err != nil {
		return err
	}
	_, err = v.client.Copies.Patch(ctx, c.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return backingimage.IgnoreNotFound(apiError(err, "ask for the verification of", "copy", c.Name))
}

// follow shows the progress until every copy has its answer, and returns the copies.
func (v *verification) follow(ctx context.Context) (of []*v1alpha1.BackingImageCopy, err error) {
	ctx, cancel := context.WithTimeout(ctx, v.timeout)
	defer cancel()
	meter := v.newMeter()
	waits := ""
	err = poll(ctx, func(ctx context.Context) (bool, error) {
		now, err := v.copies(ctx)
		if err != nil {
			return false, err
		}
		of = now
		var at []string
		for _, c := range of {
			if !v.answered(c) {
				at = append(at, fmt.Sprintf("disk %s: %s", c.Spec.DiskUUID, v.waitsFor(c)))
			}
		}
		if waits = strings.Join(at, "; "); waits != "" {
			meter.say(fmt.Sprintf("image %s: %s", v.image.Name, waits))
		}
		return waits == "", nil
	})
	meter.end()
	return of, timedOut(err, v.timeout, "image %s is not verified: %s; it goes on, see: plinth image show %s", v.image.Name, waits, v.image.Name)
}

// answered reports whether a copy was verified since it was asked for, and whether whatever came of that has ended.
func (v *verification) answered(c *v1alpha1.BackingImageCopy) bool {
	if c.Final() && len(c.Status.BadChunks) == 0 {
		return true // there is nothing to read, and there will not be
	}
	done := c.Status.VerifiedRequestTime
	return done != nil && !done.Time.Before(v.asked.Time) && (c.Status.State == v1alpha1.CopyReady || c.Status.State == v1alpha1.CopyFailed)
}

func (v *verification) waitsFor(c *v1alpha1.BackingImageCopy) string {
	if c.Status.State == v1alpha1.CopyReady && c.Status.Message == "" {
		return fmt.Sprintf("waits for node %s", c.Spec.NodeName)
	}
	return cmp.Or(c.Status.Message, string(cmp.Or(c.Status.State, v1alpha1.CopyPending)))
}

// tell prints what came of each copy. One that is bad is the command's error.
func (v *verification) tell(of []*v1alpha1.BackingImageCopy) error {
	if len(of) == 0 {
		return backingimage.Errorf(backingimage.NotFound, "%s any more", v.none())
	}
	var rows [][]string
	var bad []*v1alpha1.BackingImageCopy
	for _, c := range of {
		result := c.Status.VerifyResult
		if isBad(c) {
			bad, result = append(bad, c), cmp.Or(c.Status.Message, result)
		}
		rows = append(rows, []string{c.Spec.DiskUUID, c.Spec.NodeName, string(c.Status.State), result})
	}
	if err := printTable(v.out, []string{"DISK", "NODE", "STATE", "RESULT"}, rows); err != nil || len(bad) == 0 {
		return err
	}
	kind := backingimage.KindNamed(bad[0].Status.Reason)
	if slices.ContainsFunc(bad, func(c *v1alpha1.BackingImageCopy) bool { return len(c.Status.BadChunks) > 0 }) {
		kind = backingimage.Corrupt
	}
	return backingimage.Errorf(kind, "image %s: %d of %d copies are bad, the one on disk %s: %s",
		v.image.Name, len(bad), len(of), bad[0].Spec.DiskUUID, cmp.Or(bad[0].Status.Message, bad[0].Status.VerifyResult))
}

// isBad reports whether a copy that has its answer is damaged, or could not be read.
func isBad(c *v1alpha1.BackingImageCopy) bool {
	return c.Status.State != v1alpha1.CopyReady || len(c.Status.BadChunks) > 0 || c.Status.Reason != ""
}
