package node

import (
	"context"
	"fmt"
	"slices"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/manifest"
	"plinth.dev/plinth/backingimage/transfer"
)

// fromPeers plans a copy whose bytes other nodes have; false when they come from elsewhere. The origin asks its source
// unless another node has all of them; a copy that is not the origin asks whoever has a part.
func (a *Agent) fromPeers(ctx context.Context, c *v1alpha1.BackingImageCopy, d *disk.Disk, image *v1alpha1.BackingImage) (run attempt, is bool, err error) {
	if a.options.Identity == nil || image.Status.ContentDigest == "" {
		return nil, false, nil
	}
	others, err := a.elsewhere(ctx, image)
	if err != nil {
		return nil, true, err
	}
	ready := slices.ContainsFunc(others, func(o *v1alpha1.BackingImageCopy) bool { return o.Status.State == v1alpha1.CopyReady })
	if !ready && (c.Spec.Origin || !slices.ContainsFunc(others, receiving)) {
		return nil, false, nil
	}
	job := fetch.PeerJob{
		Dir: d.Layout().StagedImage(c.Spec.ImageUID), Image: image.Name, ImageUID: c.Spec.ImageUID,
		ContentDigest: image.Status.ContentDigest, Checksum: image.Spec.Checksum,
		Peers: func(ctx context.Context) ([]fetch.Peer, error) { return a.peers(ctx, image) }, Shares: a.options.Shares,
		Clock: a.options.Clock, Patience: a.options.PeerPatience, Stall: a.options.PeerStall,
		Received: func(bytes int64) { a.options.Metrics.peerBytes.Add(float64(bytes)) },
		Retried:  func(reason string) { a.options.Metrics.retries.WithLabelValues(reason).Inc() },
	}
	return func(ctx context.Context, report func(fetch.Progress)) (fetch.Result, error) {
		if near, on := a.readyHere(ctx, c, d); near != nil { // made while this was planned; none is being made now
			return a.copyOf(near, on, job.Dir)(ctx, report)
		}
		return fetch.FromPeers(ctx, job, report)
	}, true, nil
}

// receiving reports whether a copy is being made, so that it may have a part.
func receiving(c *v1alpha1.BackingImageCopy) bool {
	return !c.Spec.Origin && (c.Status.State == v1alpha1.CopyStarting || c.Status.State == v1alpha1.CopyInProgress)
}

// elsewhere are the copies of an image on other nodes, as the API server has them: the cache has only this node's.
func (a *Agent) elsewhere(ctx context.Context, image *v1alpha1.BackingImage) ([]*v1alpha1.BackingImageCopy, error) {
	all, err := a.store.Copies.LiveSelect(ctx, "spec.image="+image.Name)
	if err != nil {
		return nil, fmt.Errorf("look for copies on other nodes: %w", err)
	}
	return slices.DeleteFunc(all, func(c *v1alpha1.BackingImageCopy) bool {
		return c.Spec.ImageUID != string(image.UID) || c.Spec.NodeName == a.name || c.Spec.NodeName == "" || c.DeletionTimestamp != nil
	}), nil
}

// peers are the agents of other nodes that have a copy of an image, or shall have one, and say where they listen.
func (a *Agent) peers(ctx context.Context, image *v1alpha1.BackingImage) ([]fetch.Peer, error) {
	copies, err := a.elsewhere(ctx, image)
	if err != nil {
		return nil, err
	}
	nodes, err := a.nodesOf(ctx, copies)
	if err != nil {
		return nil, err
	}
	var list []fetch.Peer
	seen := map[string]bool{}
	for _, c := range copies {
		n := nodes[c.Spec.NodeName]
		if n != nil && !seen[n.Name] && n.Status.Address != "" && n.Status.PublicKeyHash != "" {
			seen[n.Name] = true
			list = append(list, transfer.NewPeer(a.options.Identity, n.Name, n.Status.Address, n.Status.PublicKeyHash, string(image.UID)))
		}
	}
	return list, nil
}

// nodesOf are all nodes by their names, as they are now when one is missing that has a copy.
func (a *Agent) nodesOf(ctx context.Context, copies []*v1alpha1.BackingImageCopy) (map[string]*v1alpha1.StorageNode, error) {
	if len(copies) == 0 {
		return nil, nil
	}
	nodes := map[string]*v1alpha1.StorageNode{}
	for _, list := range []func(context.Context) ([]*v1alpha1.StorageNode, error){a.store.AllNodes, a.store.FreshNodes} {
		all, err := list(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for other nodes: %w", err)
		}
		for _, n := range all {
			nodes[n.Name] = n
		}
		if !slices.ContainsFunc(copies, func(c *v1alpha1.BackingImageCopy) bool { return nodes[c.Spec.NodeName] == nil }) {
			break
		}
	}
	return nodes, nil
}

// Chunk gets one chunk, by its index, of the image with a UID from whichever other node has it: its bytes have the digest.
// NotFound when no other node has a copy; NotReady, with what is wrong with each, when none gives it. Safe for concurrent use.
func (a *Agent) Chunk(ctx context.Context, imageUID string, index int64, want manifest.Digest) ([]byte, error) {
	image := a.imageOf(imageUID)
	if image == nil || a.options.Identity == nil {
		return nil, backingimage.Errorf(backingimage.NotFound, "no other node can be asked for image %s", imageUID)
	}
	length := min(manifest.ChunkBytes, image.Status.VirtualSize-index*manifest.ChunkBytes)
	if index < 0 || length <= 0 {
		return nil, backingimage.Errorf(backingimage.NotFound, "image %s has no chunk %d", image.Name, index)
	}
	peers, err := a.peers(ctx, image)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, p := range peers {
			p.Close()
		}
	}()
	chunk := make([]byte, length)
	return chunk, fetch.ChunkFromPeers(ctx, peers, index, want, chunk)
}

// imageOf is the image with a UID; nil when there is none.
func (a *Agent) imageOf(uid string) *v1alpha1.BackingImage {
	for _, i := range a.store.Images.List() {
		if string(i.UID) == uid {
			return i
		}
	}
	return nil
}
