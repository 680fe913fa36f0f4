package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/provisioner"
	"plinth.dev/plinth/provisioner/engine"
)

// restore measures a volume that is made of a snapshot of which a twentieth is there, on another node.
func (b *bench) restore(ctx context.Context) error {
	var took []float64
	for range b.runs {
		seconds, err := b.oneRestore(ctx, 5*b.dense, b.dense/4)
		if err != nil {
			return err
		}
		took = append(took, seconds)
	}
	return line("restore-sparse", slices.Min(took), 2, 1)
}

// oneRestore returns the seconds from the request to ready.
func (b *bench) oneRestore(ctx context.Context, bytes, data int64) (float64, error) {
	c, err := newCluster(ctx, b.dir, 16*bytes, 0, 2, true)
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.giveVolume(ctx, "v", bytes, data); err != nil {
		return 0, err
	}
	volumes := provisioner.Idempotent{Controller: provisioner.New(c.store, provisioner.Options{})}
	s, err := volumes.CreateSnapshot(ctx, provisioner.SnapshotRequest{Name: "s", Volume: "v"})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := volumes.Create(ctx, provisioner.CreateRequest{Name: "w", SourceHandle: s.Handle, Nodes: []string{c.agents[1].name}}); err != nil {
		return 0, err
	}
	err = c.untilVolume(ctx, "w")
	return since(began), err
}

// giveVolume makes a volume on the first agent, with so many bytes of data spread over it.
func (c *cluster) giveVolume(ctx context.Context, id string, bytes, data int64) error {
	first := c.agents[0]
	if err := first.engine.Create(ctx, engine.Volume{ID: id, Bytes: bytes}); err != nil {
		return err
	}
	if err := fill(filepath.Join(first.disk.Layout().Volume(id), disk.VolumeFile), bytes, data); err != nil {
		return err
	}
	_, err := c.store.Volumes.Create(ctx, &v1alpha1.Volume{
		ObjectMeta: metav1.ObjectMeta{Name: id, Finalizers: []string{v1alpha1.VolumeFinalizer}},
		Spec:       v1alpha1.VolumeSpec{Name: id, CapacityBytes: bytes, DiskUUID: first.disk.UUID(), NodeName: first.name},
	})
	if err != nil {
		return err
	}
	return c.untilVolume(ctx, id)
}

func (c *cluster) untilVolume(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	last := ""
	err := c.store.Volumes.Wait(ctx, id, func(v *v1alpha1.Volume) (bool, error) {
		if v == nil {
			return false, nil
		}
		if last = v.Status.Message; v.Status.State == v1alpha1.VolumeFailed {
			return false, fmt.Errorf("it failed: %s", last)
		}
		return v.Status.State == v1alpha1.VolumeReady, nil
	})
	if err != nil {
		return fmt.Errorf("volume %s is not ready (%s): %w", id, last, err)
	}
	return nil
}
