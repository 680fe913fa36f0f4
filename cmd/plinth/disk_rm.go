package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// diskRemoval is what `plinth disk rm` was asked for.
type diskRemoval struct {
	ref, node string
	lost      bool
	timeout   time.Duration
}

func newDiskRmCommand(c *cli) *cobra.Command {
	var r diskRemoval
	cmd := &cobra.Command{
		Use:     "rm DISK",
		Aliases: []string{"remove", "delete"},
		Short:   "Stop using a disk; its files stay on it",
		Long: "Rm takes a disk out of use. It is refused while volumes or snapshots are on the disk, or the last ready copy of an image is; other copies move away\n" +
			"first. The files stay, so that plinth disk add takes the disk up again, here or on another node.\n\n" +
			"With --lost the disk will never come back: the objects of the copies, volumes and snapshots on it are removed as well.",
		Args:              program.Exactly("DISK"),
		ValidArgsFunction: disks.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			r.ref = args[0]
			return c.removeDisk(cmd.Context(), client, r)
		},
	}
	addNodeFlag(cmd, &r.node)
	cmd.Flags().BoolVar(&r.lost, "lost", false, "the disk is gone for good: forget it with the copies, volumes and snapshots that were on it")
	cmd.Flags().DurationVar(&r.timeout, "timeout", 10*time.Minute, "how long to wait until its copies have moved away; they go on moving after it")
	return cmd
}

func (c *cli) removeDisk(ctx context.Context, client *store.Client, r diskRemoval) error {
	d, err := findDiskOn(ctx, client, r.ref, r.node)
	if backingimage.Is(err, backingimage.NotFound) && filepath.IsAbs(r.ref) {
		return c.removeWish(ctx, client, r, err)
	}
	if err != nil {
		return err
	}
	agent, err := agentOf(ctx, client, d, c.clock.Now())
	if err != nil {
		return err
	}
	if err := agent.allows(d); err != nil {
		return err
	}
	if r.lost {
		return c.forgetDisk(ctx, client, d, agent)
	}
	if err := removable(ctx, client, d); err != nil {
		return err
	}
	if err := c.evacuate(ctx, client, d, r); err != nil {
		return err
	}
	return c.releaseDisk(ctx, client, d, agent, fmt.Sprintf("%s is not used any more; its files stay on it, and plinth disk add %s takes it up again", calledDisk(d), d.Spec.Path))
}

// removeWish takes back a path that the node could never open, so that no disk has it.
func (c *cli) removeWish(ctx context.Context, client *store.Client, r diskRemoval, notFound error) error {
	if r.node == "" {
		var err error
		if r.node, err = onlyNode(ctx, client); err != nil {
			return notFound
		}
	}
	was, err := unwish(ctx, client, r.node, filepath.Clean(r.ref))
	if err != nil || !was {
		return notFound
	}
	_, err = fmt.Fprintf(c.out, "node %s does not try to use %s any more\n", r.node, filepath.Clean(r.ref))
	return err
}

// diskAgent is the agent of the node that a disk is registered on.
type diskAgent struct {
	node  *v1alpha1.StorageNode // nil when it is not registered
	alive bool
}

// silentAfter is how old a heartbeat, which is renewed every 20 s, may be.
const silentAfter = time.Minute

func agentOf(ctx context.Context, client *store.Client, d *v1alpha1.Disk, now time.Time) (diskAgent, error) {
	n, err := nodes.get(ctx, client, d.Spec.NodeName)
	if backingimage.Is(err, backingimage.NotFound) || d.Spec.NodeName == "" {
		return diskAgent{}, nil
	}
	if err != nil {
		return diskAgent{}, err
	}
	return diskAgent{n, now.Sub(n.Status.LastHeartbeatTime.Time) < silentAfter}, nil
}

// allows refuses a disk that is open because a flag of a running agent names it: the agent would register it again.
func (a diskAgent) allows(d *v1alpha1.Disk) error {
	if !a.alive {
		return nil
	}
	if e := entryOf(a.node, d.Spec.Path); e != nil && e.FromFlag && e.UUID == d.Name && e.Reason == "" {
		return backingimage.Errorf(backingimage.Precondition, "%s is named by a --disk flag of the agent there: start the agent without it, then remove the disk", calledDisk(d))
	}
	return nil
}

// removable refuses to lose data: volumes, snapshots, and images of which this disk has the last ready copy.
func removable(ctx context.Context, client *store.Client, d *v1alpha1.Disk) error {
	of, vs, err := onDisk(ctx, client, d.Name)
	if err != nil {
		return err
	}
	if len(vs) > 0 {
		return backingimage.Errorf(backingimage.InUse, "%s holds volumes, which are not moved: %s; delete them first (plinth volume rm), or, if the disk is gone for good, add --lost", calledDisk(d), listed(vs, func(v *v1alpha1.Volume) string { return v.Name }))
	}
	_, points, err := snapshots.list(ctx, client, onDiskOptions(d.Name))
	if err != nil {
		return err
	}
	if len(points) > 0 {
		return backingimage.Errorf(backingimage.InUse, "%s holds snapshots, which are not moved: %s; delete them first (plinth snapshot rm), or, if the disk is gone for good, add --lost", calledDisk(d), listed(points, func(s *v1alpha1.Snapshot) string { return s.Name }))
	}
	last, err := lastCopies(ctx, client, of)
	if err != nil || len(last) == 0 {
		return err
	}
	return backingimage.Errorf(backingimage.InUse, "%s holds the last ready copy of images: %s; move them with: plinth disk evict %s; or delete them (plinth image rm), or, if the disk is gone for good, add --lost",
		calledDisk(d), listed(last, func(c *v1alpha1.BackingImageCopy) string { return c.Spec.Image }), d.Name)
}

// lastCopies are those ready copies of which no other disk has a ready one.
func lastCopies(ctx context.Context, client *store.Client, of []*v1alpha1.BackingImageCopy) ([]*v1alpha1.BackingImageCopy, error) {
	_, all, err := copies.list(ctx, client, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	ready := map[string]int{}
	for _, c := range all {
		if c.Status.State == v1alpha1.CopyReady && c.DeletionTimestamp == nil {
			ready[c.Spec.ImageUID]++
		}
	}
	return slices.DeleteFunc(slices.Clone(of), func(c *v1alpha1.BackingImageCopy) bool {
		return c.Status.State != v1alpha1.CopyReady || ready[c.Spec.ImageUID] > 1
	}), nil
}

// listed names a few things, and says how many more there are.
func listed[T any](things []T, name func(T) string) string {
	var names []string
	for i, t := range things {
		if i == 10 {
			names = append(names, fmt.Sprintf("and %d more", len(things)-i))
			break
		}
		names = append(names, name(t))
	}
	return strings.Join(names, ", ")
}

// evacuate requests the disk's eviction and waits until no copy is on it. What cannot be read has nothing to move.
func (c *cli) evacuate(ctx context.Context, client *store.Client, d *v1alpha1.Disk, r diskRemoval) error {
	if _, err := disks.modify(ctx, client, d.Name, func(now *v1alpha1.Disk) { now.Spec.EvictionRequested = true }); err != nil {
		return err
	}
	if !meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	left := ""
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		of, vs, err := onDisk(ctx, client, d.Name)
		if err != nil {
			return false, err
		}
		if len(vs) > 0 { // placed on it at the last moment
			return false, removable(ctx, client, d)
		}
		left = listed(of, func(c *v1alpha1.BackingImageCopy) string { return c.Spec.Image })
		if len(of) > 0 {
			meter.say(fmt.Sprintf("disk %s: %d copies move away: %s", d.Name, len(of), left))
		}
		return len(of) == 0, nil
	})
	return timedOut(err, r.timeout, "copies are still on %s: %s; they go on moving (plinth image show says what each waits for); then run this again, or keep the disk with: plinth disk evict %s --undo", calledDisk(d), left, d.Name)
}

// releaseDisk takes back the wish, waits until a running agent has closed the disk, and deletes its object.
func (c *cli) releaseDisk(ctx context.Context, client *store.Client, d *v1alpha1.Disk, agent diskAgent, done string) error {
	if agent.node != nil {
		if _, err := unwish(ctx, client, agent.node.Name, d.Spec.Path); err != nil {
			return err
		}
	}
	if agent.alive {
		if err := c.waitUntilClosed(ctx, client, d); err != nil {
			return err
		}
	}
	of, _, err := onDisk(ctx, client, d.Name)
	if err != nil {
		return err
	}
	for _, copy := range of {
		if err := backingimage.IgnoreNotFound(apiError(client.Copies.Delete(ctx, copy.Name, metav1.DeleteOptions{}), "delete", "copy", copy.Name)); err != nil {
			return err
		}
	}
	if err := backingimage.IgnoreNotFound(apiError(client.Disks.Delete(ctx, d.Name, metav1.DeleteOptions{}), "delete", "disk", d.Name)); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.out, done)
	return err
}

// closeTimeout bounds what an agent takes milliseconds for, unless it stops fetches first.
const closeTimeout = time.Minute

func (c *cli) waitUntilClosed(ctx context.Context, client *store.Client, d *v1alpha1.Disk) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		n, err := nodes.get(ctx, client, d.Spec.NodeName)
		if err != nil {
			return backingimage.Is(err, backingimage.NotFound), backingimage.IgnoreNotFound(err)
		}
		e := entryOf(n, d.Spec.Path)
		if e != nil && e.Reason == backingimage.InUse.String() {
			return false, backingimage.Errorf(backingimage.InUse, "%s", e.Message)
		}
		return e == nil || e.Reason != "", nil
	})
	return timedOut(err, closeTimeout, "the agent on node %s has not closed disk %s; is it running (plinth node ls)? Run this again then", d.Spec.NodeName, d.Name)
}

// forgetDisk removes a disk that will not come back, with what was on it.
func (c *cli) forgetDisk(ctx context.Context, client *store.Client, d *v1alpha1.Disk, agent diskAgent) error {
	if agent.alive && meta.IsStatusConditionTrue(d.Status.Conditions, v1alpha1.ConditionReady) {
		return backingimage.Errorf(backingimage.Precondition, "%s is there and can be used, so it is not lost: remove it without --lost", calledDisk(d))
	}
	_, vs, err := onDisk(ctx, client, d.Name)
	if err != nil {
		return err
	}
	for _, v := range vs {
		if err := forgetVolume(ctx, client, v); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "volume %s is lost\n", v.Name)
	}
	_, points, err := snapshots.list(ctx, client, onDiskOptions(d.Name))
	if err != nil {
		return err
	}
	for _, s := range points {
		if err := forgetSnapshot(ctx, client, s); err != nil {
			return err
		}
		fmt.Fprintf(c.out, "snapshot %s is lost\n", s.Name)
	}
	return c.releaseDisk(ctx, client, d, agent, fmt.Sprintf("%s is forgotten; should it come back, its volumes are shown by plinth disk orphans", calledDisk(d)))
}

// forgetVolume deletes a volume's object without its agent, which has no file to remove.
func forgetVolume(ctx context.Context, client *store.Client, v *v1alpha1.Volume) error {
	err := client.Volumes.Delete(ctx, v.Name, metav1.DeleteOptions{})
	if err := backingimage.IgnoreNotFound(apiError(err, "delete", "volume", v.Name)); err != nil {
		return err
	}
	_, err = volumes.modify(ctx, client, v.Name, func(now *v1alpha1.Volume) {
		now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == v1alpha1.VolumeFinalizer })
	})
	return backingimage.IgnoreNotFound(err)
}

// forgetSnapshot is forgetVolume of a snapshot.
func forgetSnapshot(ctx context.Context, client *store.Client, s *v1alpha1.Snapshot) error {
	err := client.Snapshots.Delete(ctx, s.Name, metav1.DeleteOptions{})
	if err := backingimage.IgnoreNotFound(apiError(err, "delete", "snapshot", s.Name)); err != nil {
		return err
	}
	_, err = snapshots.modify(ctx, client, s.Name, func(now *v1alpha1.Snapshot) {
		now.Finalizers = slices.DeleteFunc(now.Finalizers, func(f string) bool { return f == v1alpha1.SnapshotFinalizer })
	})
	return backingimage.IgnoreNotFound(err)
}
