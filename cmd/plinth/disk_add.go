package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// diskAddition is what `plinth disk add` was asked for.
type diskAddition struct {
	path, node, poolSize string
	tags                 []string
	timeout              time.Duration
}

func newDiskAddCommand(c *cli) *cobra.Command {
	var a diskAddition
	cmd := &cobra.Command{
		Use:   "add PATH",
		Short: "Use a directory of a node as a disk",
		Long: "Add lets a node use one more directory. A disk that is in it already, from this node or another, is recognised by its UUID and\n" +
			"brings its copies and volumes along. On XFS or btrfs the directory is used as it is; elsewhere a pool file is made in it.",
		Example: "  plinth disk add /mnt/nvme1 --tag fast",
		Args:    program.Exactly("PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			a.path = args[0]
			return c.addDisk(cmd.Context(), client, a)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&a.node, "node", "", "`name` of the node (default: the only one there is)")
	flags.StringArrayVar(&a.tags, "tag", nil, "`tag` that selectors of images and volumes ask for; may be repeated")
	flags.StringVar(&a.poolSize, "pool-size", "", "`size` of a pool file, e.g. 200Gi; it is sparse (default: 80 % of the free space)")
	flags.DurationVar(&a.timeout, "timeout", 2*time.Minute, "how long to wait until the node has opened it")
	return cmd
}

func (c *cli) addDisk(ctx context.Context, client *store.Client, a diskAddition) error {
	wish, err := a.wish()
	if err != nil {
		return err
	}
	if a.node == "" {
		if a.node, err = onlyNode(ctx, client); err != nil {
			return err
		}
	}
	added := false
	_, err = nodes.modify(ctx, client, a.node, func(n *v1alpha1.StorageNode) {
		if added = entryOf(n, wish.Path) == nil && !slices.ContainsFunc(n.Spec.Disks, func(w v1alpha1.DiskWish) bool { return w.Path == wish.Path }); added {
			n.Spec.Disks = append(n.Spec.Disks, wish)
		}
	})
	if err != nil {
		return err
	}
	uuid, err := c.waitForDisk(ctx, client, a, wish.Path)
	if err != nil && added && !backingimage.Is(err, backingimage.NotReady) {
		return takeBack(ctx, client, a.node, wish.Path, err)
	}
	if err != nil {
		return err
	}
	d, err := disks.modify(ctx, client, uuid, func(d *v1alpha1.Disk) { d.Spec.Tags = retag(d.Spec.Tags, wish.Tags, nil) })
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.out, "%s is in use: %s, %s free; see: plinth disk show %s\n", calledDisk(d), filesystemText(d), sizeText(d.Status.AvailableBytes), d.Name)
	return err
}

// wish is the addition as the node's object has it. Invalid.
func (a *diskAddition) wish() (v1alpha1.DiskWish, error) {
	w := v1alpha1.DiskWish{Path: filepath.Clean(a.path)}
	if !filepath.IsAbs(a.path) || w.Path == "/" {
		return w, backingimage.Errorf(backingimage.Invalid, "%q is no path of a disk: give the absolute path, on its node, of a directory that is not the root", a.path)
	}
	if len(a.tags) > 0 {
		add, remove, err := parseTags(a.tags)
		if err != nil || len(remove) > 0 {
			return w, backingimage.Errorf(backingimage.Invalid, "--tag: %q: write tags without commas and blanks, and without - at the end", a.tags)
		}
		w.Tags = add
	}
	var err error
	if w.PoolBytes, err = parseSize("--pool-size", a.poolSize); err == nil && w.PoolBytes != 0 && w.PoolBytes < disk.MinPoolBytes {
		err = backingimage.Errorf(backingimage.Invalid, "--pool-size: %s is too little; give at least 512Mi", a.poolSize)
	}
	return w, err
}

// onlyNode is the name of the node, when there is but one.
func onlyNode(ctx context.Context, client *store.Client) (string, error) {
	_, all, err := nodes.list(ctx, client, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	if len(all) == 1 {
		return all[0].Name, nil
	}
	var names []string
	for _, n := range all {
		names = append(names, n.Name)
	}
	return "", backingimage.Errorf(backingimage.Invalid, "--node: there are %d nodes, so name the one that has the directory: %s", len(all), strings.Join(names, ", "))
}

// entryOf is what a node says of the disk at a path, nil when nothing.
func entryOf(n *v1alpha1.StorageNode, path string) *v1alpha1.NodeDisk {
	if i := slices.IndexFunc(n.Status.Disks, func(d v1alpha1.NodeDisk) bool { return d.Path == path }); i >= 0 {
		return &n.Status.Disks[i]
	}
	return nil
}

// waitForDisk returns the UUID of the disk when the node has opened it, or why it cannot.
func (c *cli) waitForDisk(ctx context.Context, client *store.Client, a diskAddition, path string) (uuid string, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	err = poll(ctx, func(ctx context.Context) (bool, error) {
		n, err := nodes.get(ctx, client, a.node)
		if err != nil {
			return false, err
		}
		e := entryOf(n, path)
		switch {
		case e != nil && e.Reason != "":
			return false, backingimage.Errorf(refusalKind(e.Reason), "node %s does not use it: %s", a.node, e.Message)
		case e != nil:
			uuid = e.UUID
			_, err := disks.get(ctx, client, uuid)
			return err == nil, backingimage.IgnoreNotFound(err)
		}
		meter.say(fmt.Sprintf("waiting for the agent on node %s to open %s", a.node, path))
		return false, nil
	})
	return uuid, timedOut(err, a.timeout, "the agent on node %s has not opened %s; is it running (plinth node ls)? It opens it when it is; to take that back: plinth disk rm %s --node %s", a.node, path, path, a.node)
}

// refusalKind is the Kind that a reason of a node's disk stands for; a reason that is no Kind is a state of the disk.
func refusalKind(reason string) backingimage.Kind {
	if reason == v1alpha1.DiskTwin {
		return backingimage.Conflict
	}
	if kind := backingimage.KindNamed(reason); kind != backingimage.Internal {
		return kind
	}
	return backingimage.Precondition
}

// takeBack removes the wish that led to an error, so that a command that failed has changed nothing.
func takeBack(ctx context.Context, client *store.Client, node, path string, cause error) error {
	if _, err := unwish(ctx, client, node, path); err != nil {
		return fmt.Errorf("%w (and it stays in spec.disks of node %s: %w)", cause, node, err)
	}
	return cause
}

// unwish takes a path out of a node's spec.disks, and tells whether it was there.
func unwish(ctx context.Context, client *store.Client, node, path string) (was bool, err error) {
	_, err = nodes.modify(ctx, client, node, func(n *v1alpha1.StorageNode) {
		before := len(n.Spec.Disks)
		n.Spec.Disks = slices.DeleteFunc(n.Spec.Disks, func(w v1alpha1.DiskWish) bool { return filepath.Clean(w.Path) == path })
		was = len(n.Spec.Disks) < before
	})
	return was, err
}
