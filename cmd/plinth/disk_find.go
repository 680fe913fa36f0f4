package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
)

// diskRefHelp begins the help of a flag that takes what findDiskOn does.
const diskRefHelp = "`disk`, by its UUID, the beginning of it, its path or NODE/PATH,"

// findDisk is findDiskOn any node.
func findDisk(ctx context.Context, client *store.Client, ref string) (*v1alpha1.Disk, error) {
	return findDiskOn(ctx, client, ref, "")
}

// findDiskOn returns the disk that a person means by a UUID, the beginning of one, a path, or NODE/PATH; node narrows it down unless it is "".
// NotFound; Invalid when several fit.
func findDiskOn(ctx context.Context, client *store.Client, ref, node string) (*v1alpha1.Disk, error) {
	_, all, err := disks.list(ctx, client, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found []*v1alpha1.Disk
	for _, d := range all {
		if fitsDisk(d, ref) && (node == "" || d.Spec.NodeName == node) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return nil, backingimage.Errorf(backingimage.NotFound, "there is no disk %q%s (plinth disk ls shows those that are)", ref, onNode(node))
	case 1:
		return found[0], nil
	}
	var which []string
	for _, d := range found {
		which = append(which, fmt.Sprintf("%s (%s on node %s)", d.Name, d.Spec.Path, d.Spec.NodeName))
	}
	return nil, backingimage.Errorf(backingimage.Invalid, "%q fits %d disks: %s; give more of the UUID, or NODE/PATH", ref, len(found), strings.Join(which, ", "))
}

// fitsDisk reports whether a reference may mean a disk.
func fitsDisk(d *v1alpha1.Disk, ref string) bool {
	if node, path, is := strings.Cut(ref, "/"); is {
		return (node == "" || node == d.Spec.NodeName) && d.Spec.Path == filepath.Clean("/"+path)
	}
	return ref != "" && strings.HasPrefix(d.Name, strings.ToLower(ref))
}

func onNode(node string) string {
	if node == "" {
		return ""
	}
	return " on node " + node
}

// calledDisk is how a sentence calls a disk.
func calledDisk(d *v1alpha1.Disk) string {
	return fmt.Sprintf("disk %s (%s on node %s)", d.Name, d.Spec.Path, d.Spec.NodeName)
}

// onDisk returns the copies and volumes on a disk.
func onDisk(ctx context.Context, client *store.Client, uuid string) ([]*v1alpha1.BackingImageCopy, []*v1alpha1.Volume, error) {
	o := onDiskOptions(uuid)
	_, of, err := copies.list(ctx, client, o)
	if err != nil {
		return nil, nil, err
	}
	_, vs, err := volumes.list(ctx, client, o)
	return of, vs, err
}

// onDiskOptions select what is on a disk.
func onDiskOptions(uuid string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: "spec.diskUUID=" + uuid}
}

var placedDisks = &placed{
	one: "disk", complete: disks.complete, nodeFlag: true,
	change: func(ctx context.Context, client *store.Client, ref, node string, change func(placing)) (string, string, error) {
		d, err := findDiskOn(ctx, client, ref, node)
		if err != nil {
			return "", "", err
		}
		d, err = disks.modify(ctx, client, d.Name, func(now *v1alpha1.Disk) {
			change(placing{&now.Spec.Tags, &now.Spec.AllowScheduling, &now.Spec.EvictionRequested})
		})
		if err != nil {
			return "", "", err
		}
		return calledDisk(d), d.Name, nil
	},
	has: func(ctx context.Context, client *store.Client, uuid string) (int, int, error) {
		of, vs, err := onDisk(ctx, client, uuid)
		return len(of), len(vs), err
	},
}
