package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/disk"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// ChunkSource gives chunks of images that other nodes hold.
type ChunkSource interface {
	// Chunk returns the bytes of a chunk, by its index, of the image with this UID; they have the digest. NotFound when no peer
	// has them, NotReady when one may have them later. Safe for concurrent use.
	Chunk(ctx context.Context, imageUID string, index int64, want manifest.Digest) ([]byte, error)
}

// Where chunks come from, as the metrics call it; fetch.Zeros is another.
const (
	giverCopy   = "copy"
	giverPeer   = "peer"
	giverSource = "source"
)

var giversInWords = map[string]string{
	fetch.Zeros: "its manifest", giverCopy: "another copy on this node", giverPeer: "a peer", giverSource: "the image's source",
}

// givers are who may have a copy's chunks, the nearest first.
func (r *repair) givers(report func(fetch.Progress)) []fetch.Giver {
	var givers []fetch.Giver
	for _, c := range r.sameContent() {
		if d, here := r.agent.disks.Get(c.Spec.DiskUUID); here {
			givers = append(givers, fetch.Giver{Name: giverCopy, Chunk: r.agent.giveCopy(c, d)})
		}
	}
	if peers := r.agent.options.Peers; peers != nil {
		givers = append(givers, fetch.Giver{Name: giverPeer, Chunk: func(ctx context.Context, index int64, want manifest.Digest) ([]byte, error) {
			return peers.Chunk(ctx, r.copy.Spec.ImageUID, index, want)
		}})
	}
	return append(givers, fetch.Giver{Name: giverSource, Chunk: r.giveSource(report)})
}

// sameContent are the other finished copies on this node whose content is the same, those of the same image first.
func (r *repair) sameContent() []*v1alpha1.BackingImageCopy {
	var same, clones []*v1alpha1.BackingImageCopy
	for _, c := range r.agent.store.Copies.List() {
		_, err := r.agent.disks.Use(c.Spec.DiskUUID)
		switch {
		case err != nil || c.Name == r.copy.Name || c.Status.ContentDigest != r.record.ContentDigest:
		case c.Spec.ImageUID == r.copy.Spec.ImageUID:
			same = append(same, c)
		default:
			clones = append(clones, c)
		}
	}
	return slices.Concat(same, clones)
}

// giveCopy gives chunks of another copy on this node. Damage that it finds there is marked.
func (a *Agent) giveCopy(c *v1alpha1.BackingImageCopy, d *disk.Disk) func(context.Context, int64, manifest.Digest) ([]byte, error) {
	dir := d.Layout().Image(c.Spec.ImageUID)
	give := fetch.ChunksOf(dir)
	return func(ctx context.Context, index int64, want manifest.Digest) ([]byte, error) {
		known, err := fetch.Damage(dir)
		if err != nil || slices.Contains(known, index) {
			return nil, backingimage.Errorf(backingimage.NotFound, "it is damaged there, too")
		}
		chunk, err := give(ctx, index, want)
		if backingimage.Is(err, backingimage.Corrupt) || err == nil && manifest.Sum(chunk) != want {
			a.mark(ctx, c.Name, dir, index)
			return nil, backingimage.Errorf(backingimage.NotFound, "it is damaged there, too")
		}
		return chunk, err
	}
}

// giveSource gives chunks of what the image is made of: read there alone, where a chunk of the content is a piece of the
// source's file, else out of a copy that is made anew beside the damaged one.
func (r *repair) giveSource(report func(fetch.Progress)) func(context.Context, int64, manifest.Digest) ([]byte, error) {
	var once sync.Once
	var made error
	staged := fetch.ChunksOf(r.disk.Layout().StagedImage(r.copy.Spec.ImageUID))
	return func(ctx context.Context, index int64, want manifest.Digest) ([]byte, error) {
		chunk, err := r.piece(ctx, index)
		if err == nil && manifest.Sum(chunk) != want {
			err = backingimage.Errorf(backingimage.Corrupt, "the URL now serves something else: its bytes from %d on are not those of the image", index*manifest.ChunkBytes)
		}
		if !errors.Is(err, errWhole) {
			return chunk, err
		}
		once.Do(func() { made = r.refetch(ctx, report) })
		if made != nil {
			return nil, made
		}
		return staged(ctx, index, want)
	}
}

// errWhole says that a source cannot give a chunk alone.
var errWhole = errors.New("the source has to be read as a whole")

// piece reads one chunk at the source of a raw image; errWhole when that cannot be.
func (r *repair) piece(ctx context.Context, index int64) ([]byte, error) {
	offset := index * manifest.ChunkBytes
	if r.image.Spec.SourceType != v1alpha1.SourceDownload || r.record.Format != format.Raw || offset >= r.record.SourceBytes {
		return nil, errWhole
	}
	from, err := r.agent.behind(ctx, r.image.Spec.Parameters())
	if err != nil {
		return nil, err
	}
	if archiveFolder(from) != "" {
		return nil, errWhole
	}
	body, err := from.Open(ctx, offset, "")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if body.Offset != offset {
		return nil, errWhole
	}
	chunk := make([]byte, min(manifest.ChunkBytes, r.record.VirtualBytes-offset)) // padded with zeros beyond the source's end
	if _, err := io.ReadFull(body, chunk[:min(int64(len(chunk)), r.record.SourceBytes-offset)]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, backingimage.Errorf(backingimage.Corrupt, "the URL now serves something else: its file is shorter than the image's was")
	} else if err != nil {
		return nil, err
	}
	return chunk, nil
}

// refetch makes the image's copy anew in staging, of the same content or not at all.
func (r *repair) refetch(ctx context.Context, report func(fetch.Progress)) error {
	if r.image.Spec.SourceType == v1alpha1.SourceUpload {
		return backingimage.Errorf(backingimage.Precondition, "the image was uploaded, and what is uploaded is not kept")
	}
	image := r.image.DeepCopy()
	image.Status.ContentDigest = r.record.ContentDigest
	run, waits, err := r.agent.planSource(ctx, r.copy, r.disk, image)
	if err != nil {
		return err
	}
	if waits != "" {
		return backingimage.Errorf(backingimage.NotReady, "the repair %s", waits)
	}
	if _, err := run(ctx, report); err != nil {
		return fmt.Errorf("make it anew: %w", err)
	}
	return nil
}
