package provisioner

import (
	"context"
	"time"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/transfer"
)

// tokenLife is for how long a token of one call opens a snapshot, should nobody take it back.
const tokenLife = 10 * time.Minute

// Extents implements Snapshots. The agent of the snapshot's disk finds them, and this process is no node that it would know: it
// shows a token whose hash it has written into the Snapshot object, as who may write that can.
func (p *Provisioner) Extents(ctx context.Context, handle, base string, from int64, use func(offset, bytes int64) error) error {
	s, err := p.extentsOf(ctx, handle)
	if err != nil {
		return err
	}
	baseUID := ""
	if base != "" {
		b, err := p.extentsOf(ctx, base)
		if err != nil {
			return err
		}
		if b.Spec.DiskUUID != s.Spec.DiskUUID {
			return differentDisks(s, b)
		}
		baseUID = string(b.UID)
	}
	n, known := p.store.Nodes.Get(s.Spec.NodeName)
	if !known || n.Status.Address == "" || n.Status.PublicKeyHash == "" {
		return backingimage.Errorf(backingimage.NotReady, "snapshot %s is on node %s, which does not say where it is reached", s.Name, s.Spec.NodeName)
	}
	token, now := transfer.NewToken(), time.Now()
	if _, err := p.store.Snapshots.Modify(ctx, s.Name, func(stored *v1alpha1.Snapshot) {
		stored.Spec.AccessTokens = transfer.Grant(stored.Spec.AccessTokens, token, now.Add(tokenLife), now)
	}); err != nil {
		return err
	}
	defer p.revoke(context.WithoutCancel(ctx), s.Name, token)
	client := transfer.NewSnapshotClient(n.Status.Address, n.Status.PublicKeyHash, string(s.UID), token)
	defer client.Close()
	return client.Extents(ctx, baseUID, from, func(_ int64, x transfer.Extent) error { return use(x.Offset, x.Bytes) })
}

// revoke takes a token back. When it cannot, the token expires.
func (p *Provisioner) revoke(ctx context.Context, snapshot string, token transfer.Token) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, _ = p.store.Snapshots.Modify(ctx, snapshot, func(now *v1alpha1.Snapshot) {
		now.Spec.AccessTokens = transfer.Revoke(now.Spec.AccessTokens, token)
	})
}

// extentsOf returns the object of a snapshot whose blocks can be told.
func (p *Provisioner) extentsOf(ctx context.Context, handle string) (*v1alpha1.Snapshot, error) {
	h, err := ParseHandle(handle)
	if err != nil {
		return nil, backingimage.Errorf(backingimage.NotFound, "%w", err)
	}
	if h.Type != TypeSnap {
		return nil, backingimage.Errorf(backingimage.Precondition, "snapshot %s is not on its volume's disk (its type is %s), so that its blocks are not known", handle, h.Type)
	}
	s, err := diskSnapshots{p}.find(ctx, h)
	if err != nil {
		return nil, err
	}
	if err := snapshotFailure(s); err != nil {
		return nil, err
	}
	if s.Status.State != v1alpha1.SnapshotReady || s.DeletionTimestamp != nil {
		return nil, backingimage.Errorf(backingimage.NotReady, "snapshot %s is not ready: %s", s.Name, snapshotOf(s).Message)
	}
	return s, nil
}
