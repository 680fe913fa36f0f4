package node

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/store"
)

// admit decides, before anything is written, whether the disk that was found at a path of this node may be used; uuid is "" when
// there is none and a new one would be made. A disk that is known belongs wherever it is plugged in: its UUID says who it is. A disk
// that nobody knows is refused where a known one should be, because a partition that was not mounted, or another one mounted in its
// place, would else be taken for a new, empty disk.
func (k *keeper) admit(ctx context.Context, path, uuid string) error {
	known := false
	if uuid != "" {
		object, err := k.store.Disks.Live(ctx, uuid)
		if err != nil && !backingimage.Is(err, backingimage.NotFound) {
			return err
		}
		if known = err == nil; known {
			if err := k.twin(ctx, object, path); err != nil {
				return err
			}
		}
	}
	other := k.registeredAt(path)
	switch {
	case known || other != "" && other == uuid:
		return nil
	case uuid == "" && other == "":
		return k.moved(ctx, path)
	case uuid == "":
		return refuse(string(disk.ProblemGone), backingimage.Precondition, "disk %s is registered there, and it is not there: mount it, and it is taken up by itself; if a new disk shall be made there, forget the old one with: plinth disk rm %s", other, other)
	case other == "":
		return nil
	}
	return refuse(string(disk.ProblemForeign), backingimage.Precondition, "it is disk %s, which nobody knows, and disk %s is registered there: mount what belongs there; if this is a new disk, forget the old one with: plinth disk rm %s", uuid, other, other)
}

// moved refuses to make a new disk where the one that was there last is on another node or at another path now.
func (k *keeper) moved(ctx context.Context, path string) error {
	uuid := k.last(path)
	if uuid == "" {
		return nil
	}
	object, err := k.store.Disks.Live(ctx, uuid)
	if err != nil {
		return backingimage.IgnoreNotFound(err)
	}
	return refuse(string(disk.ProblemGone), backingimage.Precondition, "disk %s was there last, and is %s on node %s now: a new disk is not made in the place of one that was moved; take the path back (its --disk flag, or plinth disk rm), or name an empty directory below it", object.Name, object.Spec.Path, object.Spec.NodeName)
}

// last is the UUID of the disk that was open at a path last.
func (k *keeper) last(path string) string {
	if uuid := k.opened[path]; uuid != "" {
		return uuid
	}
	n, ok := k.store.Nodes.Get(k.node)
	if !ok {
		return ""
	}
	for _, d := range n.Status.Disks {
		if d.Path == path {
			return d.UUID
		}
	}
	return ""
}

// twin refuses a disk that is open elsewhere, on this node or another: two disks have one UUID, and nobody can tell which is the
// right one. A disk that its former node has lost, or whose node is silent, was moved.
func (k *keeper) twin(ctx context.Context, object *v1alpha1.Disk, path string) error {
	if d, open := k.set.Get(object.Name); open && d.Path() != path {
		return refuse(v1alpha1.DiskTwin, backingimage.Conflict, "%w", disk.Twins(object.Name, d.Path(), path))
	}
	if object.Spec.NodeName == k.node || object.Spec.NodeName == "" {
		return nil
	}
	owner, err := k.store.Nodes.Live(ctx, object.Spec.NodeName)
	after := k.options.TakeOverAfter
	switch {
	case backingimage.Is(err, backingimage.NotFound):
		return nil
	case err != nil:
		return err
	case released(object), k.pulses.silent(owner, after):
		return nil
	}
	on := func(path, node string) string { return fmt.Sprintf("%s (on node %s)", path, node) }
	return refuse(v1alpha1.DiskTwin, backingimage.Conflict, "%w; a disk that was moved here is taken over when node %s no longer has it, or is silent for %s",
		disk.Twins(object.Name, on(object.Spec.Path, owner.Name), on(path, k.node)), owner.Name, after)
}

// released reports whether a disk's node says that it does not have it open, or can do nothing with it.
func released(object *v1alpha1.Disk) bool {
	ready := meta.FindStatusCondition(object.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status == metav1.ConditionTrue {
		return false
	}
	p := disk.Problem(ready.Reason)
	return ready.Reason == v1alpha1.DiskNotWanted || p.Away() || p == disk.ProblemFailing
}

// register writes the object of an open disk where it is missing. A disk that comes from elsewhere brings its copies, volumes and
// snapshots along; killed half-way, the next registration moves the rest.
func (k *keeper) register(ctx context.Context, w wish, d *disk.Disk) error {
	object, err := k.object(ctx, w, d)
	if err != nil {
		return fmt.Errorf("register disk %s: %w", d.Path(), err)
	}
	if err := k.twin(ctx, object, d.Path()); err != nil {
		return err
	}
	from := object.Spec.NodeName
	object, err = k.store.Disks.Modify(ctx, d.UUID(), func(now *v1alpha1.Disk) {
		if now.Spec.NodeName == from { // else another node was faster
			now.Spec.NodeName, now.Spec.Path = k.node, d.Path()
		}
	})
	if err != nil {
		return fmt.Errorf("register disk %s: %w", d.Path(), err)
	}
	if object.Spec.NodeName != k.node {
		return k.twin(ctx, object, d.Path())
	}
	if from != k.node {
		klog.FromContext(ctx).Info("Took over a disk", "disk", d.UUID(), "path", d.Path(), "from", from)
	}
	return k.bring(ctx, d.UUID())
}

// object is a disk's, made if it is missing.
func (k *keeper) object(ctx context.Context, w wish, d *disk.Disk) (*v1alpha1.Disk, error) {
	object, err := k.store.Disks.Live(ctx, d.UUID())
	if !backingimage.Is(err, backingimage.NotFound) {
		return object, err
	}
	return k.store.Disks.Create(ctx, &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: d.UUID()}, Spec: v1alpha1.DiskSpec{
		Type: "reflink", NodeName: k.node, Path: d.Path(), Tags: w.tags,
	}})
}

// bring makes the copies, volumes and snapshots of a disk this node's.
func (k *keeper) bring(ctx context.Context, uuid string) error {
	return errors.Join(
		bring(ctx, k.store.Copies, uuid, func(c *v1alpha1.BackingImageCopy) *string { return &c.Spec.NodeName }, k.node),
		bring(ctx, k.store.Volumes, uuid, func(v *v1alpha1.Volume) *string { return &v.Spec.NodeName }, k.node),
		bring(ctx, k.store.Snapshots, uuid, func(s *v1alpha1.Snapshot) *string { return &s.Spec.NodeName }, k.node),
	)
}

func bring[T store.Object](ctx context.Context, kind *store.Kind[T], uuid string, nodeName func(T) *string, node string) error {
	all, err := kind.LiveSelect(ctx, "spec.diskUUID="+uuid)
	if err != nil {
		return fmt.Errorf("move what is on disk %s to node %s: %w", uuid, node, err)
	}
	for _, o := range all {
		if *nodeName(o) == node {
			continue
		}
		_, err := kind.Modify(ctx, o.GetName(), func(now T) { *nodeName(now) = node })
		if backingimage.IgnoreNotFound(err) != nil {
			return fmt.Errorf("move what is on disk %s to node %s: %w", uuid, node, err)
		}
	}
	return nil
}

// elsewhere reports whether another node has taken an open disk over, as it may when this one was silent. The cache may not know yet
// that this node has it.
func (k *keeper) elsewhere(ctx context.Context, d *disk.Disk) bool {
	if object, known := k.store.Disks.Get(d.UUID()); known && object.Spec.NodeName == k.node {
		return false
	}
	object, err := k.store.Disks.Live(ctx, d.UUID())
	return err == nil && object.Spec.NodeName != k.node && object.Spec.NodeName != ""
}
