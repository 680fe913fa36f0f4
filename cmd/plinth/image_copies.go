package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
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
	return []string{c.Spec.NodeName, c.Spec.DiskUUID, copyState(i, c), from, progressOf(c).numbers(), sizeText(c.Status.RealSize), used, verified}
}

// copyState is what the image says of a copy, or, before it says anything, the copy itself.
func copyState(i *v1alpha1.BackingImage, c *v1alpha1.BackingImageCopy) string {
	return string(cmp.Or(i.Status.DiskFileStatusMap[c.Spec.DiskUUID].State, c.Status.State, v1alpha1.CopyPending))
}

// copyMessage is what is to be said of a copy beside its state, "" when that is all.
func copyMessage(i *v1alpha1.BackingImage, c *v1alpha1.BackingImageCopy, now time.Time) string {
	message := cmp.Or(i.Status.DiskFileStatusMap[c.Spec.DiskUUID].Message, c.Status.Message)
	if c.Status.State == v1alpha1.CopyFailed {
		message += fmt.Sprintf(" (failed attempts: %d; next try: %s)", c.Status.Attempts, nextTryText(c, now))
	}
	if c.Status.VerifyResult != "" && message == "" {
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
