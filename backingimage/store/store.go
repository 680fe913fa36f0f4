package store

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
)

// Indexes of copies and of volumes: by the name of their image; and of them and of snapshots: by the UUID of their disk.
const (
	ByImage = "image"
	ByDisk  = "disk"
)

// Options of a Store.
type Options struct {
	// NodeName limits all but images, targets and policies to what is one node's, which is all that an agent needs at any time, and the nodes
	// to that one; "" is all. See AllNodes for the others.
	NodeName string
}

// Store is every kind with its cache.
type Store struct {
	Images    *Kind[*v1alpha1.BackingImage]
	Copies    *Kind[*v1alpha1.BackingImageCopy]
	Nodes     *Kind[*v1alpha1.StorageNode]
	Disks     *Kind[*v1alpha1.Disk]
	Volumes   *Kind[*v1alpha1.Volume]
	Snapshots *Kind[*v1alpha1.Snapshot]
	Targets   *Kind[*v1alpha1.BackupTarget]
	Backups   *Kind[*v1alpha1.Backup]
	Policies  *Kind[*v1alpha1.BackupPolicy]

	directory *directory // nil: the cache has all nodes
	informers []cache.SharedIndexInformer
	synced    chan struct{}
}

// New makes a Store. Nothing is read before Run.
func New(cfg *rest.Config, o Options) (*Store, error) {
	c, err := NewClient(cfg)
	if err != nil {
		return nil, err
	}
	mine, given, me := "", "", ""
	if o.NodeName != "" {
		mine, given, me = "spec.nodeName="+o.NodeName, "status.nodeName="+o.NodeName, "metadata.name="+o.NodeName
	}
	s := &Store{
		Images:    newKind("backing image", c.Images, &v1alpha1.BackingImage{}, "", nil),
		Copies:    newKind("copy", c.Copies, &v1alpha1.BackingImageCopy{}, mine, indexes[*v1alpha1.BackingImageCopy]{ByImage: imageOfCopy, ByDisk: diskOfCopy}),
		Nodes:     newKind("node", c.Nodes, &v1alpha1.StorageNode{}, me, nil),
		Disks:     newKind("disk", c.Disks, &v1alpha1.Disk{}, mine, nil),
		Volumes:   newKind("volume", c.Volumes, &v1alpha1.Volume{}, mine, indexes[*v1alpha1.Volume]{ByImage: imageOfVolume, ByDisk: diskOfVolume}),
		Snapshots: newKind("snapshot", c.Snapshots, &v1alpha1.Snapshot{}, mine, indexes[*v1alpha1.Snapshot]{ByDisk: diskOfSnapshot}),
		Targets:   newKind("backup target", c.Targets, &v1alpha1.BackupTarget{}, "", nil),
		Backups:   newKind("backup", c.Backups, &v1alpha1.Backup{}, given, nil),
		Policies:  newKind("backup policy", c.Policies, &v1alpha1.BackupPolicy{}, "", nil),
		synced:    make(chan struct{}),
	}
	if o.NodeName != "" {
		s.directory = &directory{nodes: s.Nodes, clock: clock.RealClock{}}
	}
	s.informers = []cache.SharedIndexInformer{s.Images.informer, s.Copies.informer, s.Nodes.informer, s.Disks.informer, s.Volumes.informer, s.Snapshots.informer,
		s.Targets.informer, s.Backups.informer, s.Policies.informer}
	return s, nil
}

func imageOfCopy(c *v1alpha1.BackingImageCopy) []string { return []string{c.Spec.Image} }

func diskOfCopy(c *v1alpha1.BackingImageCopy) []string { return []string{c.Spec.DiskUUID} }
func diskOfSnapshot(s *v1alpha1.Snapshot) []string     { return []string{s.Spec.DiskUUID} }

func diskOfVolume(v *v1alpha1.Volume) []string { return []string{v.Spec.DiskUUID} }

func imageOfVolume(v *v1alpha1.Volume) []string {
	if v.Spec.Image == nil {
		return nil
	}
	return []string{v.Spec.Image.Name}
}

// Run keeps the caches until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, i := range s.informers {
		wg.Go(func() { i.RunWithContext(ctx) })
	}
	for _, i := range s.informers {
		if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			wg.Wait()
			return fmt.Errorf("fill caches: %w", ctx.Err())
		}
	}
	close(s.synced)
	wg.Wait()
	return nil
}

// Synced returns when the caches are full, or with ctx's error.
func (s *Store) Synced(ctx context.Context) error {
	select {
	case <-s.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fill caches: %w", ctx.Err())
	}
}
