package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// printCopies prints a line for each copy of an image, and below them what is to be said of single ones. What state they are in
// is for the image to say: it knows of silent nodes and of evictions.
func printCopies(w io.Writer, i *v1alpha1.BackingImage, of []*v1alpha1.BackingImageCopy, now time.Time) error {
	if len(of) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w, "\nCopies:"); err != nil {
		return err
	}
	var rows [][]string
	for _, c := range of {
		rows = append(rows, copyRow(i, c, now))
	}
	if err := printTable(w, []string{"NODE", "DISK", "STATE", "FROM", "PROGRESS", "REAL SIZE", "LAST USED", "LAST VERIFIED"}, rows); err != nil {
		return err
	}
	for _, c := range of {
		if message := copyMessage(i, c, now); message != "" {
			if _, err := fmt.Fprintf(w, "\nDisk %s: %s\n", c.Spec.DiskUUID, message); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyRow(i *v1alpha1.BackingImage, c *v1alpha1.BackingImageCopy, now time.Time) []string {
	from := "peers"
	if c.Spec.Origin {
		from = "source"
	}
	used, verified := "", ""
	if t := c.Status.LastUsedTime; t != nil {
		used = ageText(now, *t) + " ago"
	}
	if t := c.Status.LastVerifiedTime; t != nil {
		verified = ageText(now, *t) + " ago"
	}
	if c.Status.VerifyResult == v1alpha1.VerifiedGood {
		verified += ", good"
	}
	progress := progressOf(c)
	far := progress.numbers()
	if isStep(c.Status) {
		far = progress.sentence()
	}
	return []string{c.Spec.NodeName, c.Spec.DiskUUID, copyState(i, c), from, far, sizeText(c.Status.RealSize), used, verified}
}

// copyState is what the image says of a copy, or, before it says anything, the copy itself.
func copyState(i *v1alpha1.BackingImage, c *v1alpha1.BackingImageCopy) string {
	return string(cmp.Or(i.Status.DiskFileStatusMap[c.Spec.DiskUUID].State, c.Status.State, v1alpha1.CopyPending))
}

// isStep reports whether all that a copy says is in which step it is, like "receiving": then that stands in its line.
func isStep(s v1alpha1.BackingImageCopyStatus) bool {
	return s.State == v1alpha1.CopyInProgress && s.Message != "" && !strings.Contains(s.Message, " ")
}

// copyMessage is what is to be said of a copy beside its state, "" when that is all.
func copyMessage(i *v1alpha1.BackingImage, c *v1alpha1.BackingImageCopy, now time.Time) string {
	message := cmp.Or(i.Status.DiskFileStatusMap[c.Spec.DiskUUID].Message, c.Status.Message)
	if isStep(c.Status) && message == c.Status.Message {
		message = ""
	}
	if c.Status.State == v1alpha1.CopyFailed {
		message += fmt.Sprintf(" (failed attempts: %d; next try: %s)", c.Status.Attempts, nextTryText(c, now))
	}
	if c.Status.VerifyResult != "" && c.Status.VerifyResult != v1alpha1.VerifiedGood && message == "" {
		message = "the last verification found: " + c.Status.VerifyResult
	}
	return message
}

// nextTryText says when a failed copy will be tried again.
func nextTryText(c *v1alpha1.BackingImageCopy, now time.Time) string {
	if c.Final() {
		return "none: trying again cannot help"
	}
	return "in " + max(c.Status.NextTryTime.Sub(now), 0).Round(time.Second).String()
}

// findCopy returns the copy of an image on the disk that a person means; see findDiskOn. A disk that is not registered any more has
// no other name than its UUID. NotFound; Invalid when several fit.
func findCopy(ctx context.Context, client *store.Client, i *v1alpha1.BackingImage, ref string) (*v1alpha1.BackingImageCopy, error) {
	of, err := copiesOf(ctx, client, i)
	if err != nil {
		return nil, err
	}
	_, all, err := disks.list(ctx, client, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found []*v1alpha1.BackingImageCopy
	var fit, others []string
	for _, c := range of {
		d := &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: c.Spec.DiskUUID}, Spec: v1alpha1.DiskSpec{NodeName: c.Spec.NodeName}}
		if at := slices.IndexFunc(all, func(d *v1alpha1.Disk) bool { return d.Name == c.Spec.DiskUUID }); at >= 0 {
			d = all[at]
		}
		name := fmt.Sprintf("%s (%s%s)", d.Name, d.Spec.NodeName, d.Spec.Path)
		if others = append(others, name); fitsDisk(d, ref) {
			found, fit = append(found, c), append(fit, name)
		}
	}
	switch len(found) {
	case 0:
		return nil, backingimage.Errorf(backingimage.NotFound, "--disk: image %s has no copy on disk %q; it has them on: %s", i.Name, ref, cmp.Or(strings.Join(others, ", "), "no disk"))
	case 1:
		return found[0], nil
	}
	return nil, backingimage.Errorf(backingimage.Invalid, "--disk: %q fits %d disks: %s; give more of the UUID, or NODE/PATH", ref, len(found), strings.Join(fit, ", "))
}
