package reflink

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/provisioner/engine"
)

// Snapshot makes a snapshot of a volume.
func (e *Engine) Snapshot(ctx context.Context, s engine.Snapshot) error {
	unlock, err := e.beginSnapshot(ctx, s.ID, s.Volume)
	if err != nil {
		return err
	}
	defer unlock()
	existing, err := e.snapshots.read(s.ID)
	switch {
	case err == nil && existing.From.Volume != s.Volume:
		return backingimage.Errorf(backingimage.Conflict, "snapshot %s exists and is of volume %s, not of %s", s.ID, existing.From.Volume, s.Volume)
	case err == nil || !backingimage.Is(err, backingimage.NotFound):
		return err
	}
	r, err := e.volumes.read(s.Volume)
	if err != nil {
		return err
	}
	r = record{Volume: engine.Volume{ID: s.ID, Bytes: r.Bytes, Name: s.Name}, From: engine.From{Volume: s.Volume}, Created: time.Now()}
	err = e.stage(e.snapshots, s.ID, func(p *publication) error {
		if err := p.describe(r); err != nil { // on its way to the disk meanwhile
			return err
		}
		return e.still(ctx, s.Volume, p.content)
	})
	if err != nil {
		return e.explain(fmt.Sprintf("take snapshot %s of volume %s", s.ID, s.Volume), err)
	}
	klog.FromContext(ctx).V(2).Info("Took snapshot", "snapshot", s.ID, "volume", s.Volume)
	return nil
}

// DeleteSnapshot removes a snapshot.
func (e *Engine) DeleteSnapshot(ctx context.Context, id string) error {
	unlock, err := e.beginSnapshot(ctx, id, "")
	if err != nil {
		return err
	}
	defer unlock()
	return e.take(e.snapshots, id)
}

// StatSnapshot returns what is on disk.
func (e *Engine) StatSnapshot(_ context.Context, id string) (engine.SnapshotInfo, error) {
	if err := e.snapshots.check(id); err != nil {
		return engine.SnapshotInfo{}, err
	}
	r, err := e.snapshots.read(id)
	if err != nil {
		return engine.SnapshotInfo{}, err
	}
	return e.snapshotInfo(r)
}

// ListSnapshots returns every snapshot on the disk. One whose record cannot be read is listed by its ID and size.
func (e *Engine) ListSnapshots(ctx context.Context) ([]engine.SnapshotInfo, error) {
	records, err := e.snapshots.list(ctx)
	if err != nil {
		return nil, err
	}
	var infos []engine.SnapshotInfo
	for _, r := range records {
		info, err := e.snapshotInfo(r)
		if err != nil {
			return nil, fmt.Errorf("list snapshots: %w", err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// snapshotInfo completes a record with what only the filesystem knows.
func (e *Engine) snapshotInfo(r record) (engine.SnapshotInfo, error) {
	info := engine.SnapshotInfo{Snapshot: engine.Snapshot{ID: r.ID, Volume: r.From.Volume, Name: r.Name}, Created: r.Created}
	st, err := e.snapshots.stat(r.ID)
	if err == nil && st != nil {
		info.Bytes, info.UsedBytes = st.Size, st.Blocks*512
	}
	return info, err
}

// beginSnapshot checks the IDs and excludes other calls for them; volume may be "".
func (e *Engine) beginSnapshot(ctx context.Context, id, volume string) (unlock func(), err error) {
	if err := e.snapshots.check(id); err != nil {
		return nil, err
	}
	if volume != "" {
		if err := e.volumes.check(volume); err != nil {
			return nil, err
		}
	}
	unlock, err = e.lock(ctx, "snapshot/"+id, volume)
	if err != nil {
		return nil, fmt.Errorf("wait for another call for snapshot %s: %w", id, err)
	}
	return unlock, nil
}
