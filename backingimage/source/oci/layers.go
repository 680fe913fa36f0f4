package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// Bounds of a look into a layer: bytes after decompression, and members. A layer with the disk has it in front.
const (
	lookBytes   = 256 << 20
	lookMembers = 100_000
)

// layerWithDisk finds the layer that has the disk. Upper layers hide lower ones, so it looks from the top down, at the
// headers only, and does not look into the last that is left: the fetch finds out whether it has a disk.
func (r *registry) layerWithDisk(ctx context.Context, layers []v1.Descriptor) (v1.Descriptor, error) {
	for i, layer := range slices.Backward(layers) {
		if i == 0 {
			return layer, nil
		}
		has, err := r.hasDisk(ctx, layer)
		if err != nil {
			return v1.Descriptor{}, err
		}
		if has {
			return layer, nil
		}
	}
	return v1.Descriptor{}, r.named(backingimage.Errorf(backingimage.Unsupported, "is a container image without layers; make a containerDisk, with the disk's file in /disk"))
}

// hasDisk looks into a layer until it has found the disk's folder with a file in it.
func (r *registry) hasDisk(ctx context.Context, layer v1.Descriptor) (bool, error) {
	body, err := source.Watch(ctx, r.options, r.shown, func(ctx context.Context) (io.ReadCloser, error) {
		resp, err := r.get(ctx, r.blobURL(layer.Digest), blobHeader(0, -1))
		if err != nil {
			return nil, err
		}
		return resp.Body, nil
	})
	if err != nil {
		return false, err
	}
	defer body.Close()
	plain, err := decompressed(body)
	if err == nil {
		defer plain.Close()
		var has bool
		if has, err = findDisk(plain); err == nil {
			return has, nil
		}
	}
	switch {
	case backingimage.Is(err, backingimage.NotReady), ctx.Err() != nil:
		return false, err
	case errors.Is(err, errTooFar):
		return false, r.named(backingimage.Errorf(backingimage.Unsupported, "has a layer %s without /%s at its beginning; build the image so that its last layer is the disk's file alone", layer.Digest, diskFolder))
	case errors.Is(err, errRemoved):
		return false, r.named(backingimage.Errorf(backingimage.Unsupported, "has a layer %s that removes the disk; build the image without it", layer.Digest))
	}
	return false, r.named(backingimage.Errorf(backingimage.Corrupt, "has a layer %s that cannot be read as a tar archive; push the image again", layer.Digest))
}

// decompressed reads through gzip or zstd, told by the first bytes, with the memory that zstd may take bounded.
func decompressed(r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReader(r)
	magic, err := buffered.Peek(4)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, err
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buffered)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(buffered), nil
}

var (
	errTooFar  = errors.New("looked far enough")
	errRemoved = errors.New("the disk is removed")
)

// findDisk reads the headers of a tar archive until it meets a file in the disk's folder.
func findDisk(r io.Reader) (bool, error) {
	bound := &io.LimitedReader{R: r, N: lookBytes}
	archive := tar.NewReader(bound)
	for range lookMembers {
		header, err := archive.Next()
		switch {
		case err != nil && bound.N == 0:
			return false, errTooFar
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		}
		folder, file := path.Split(path.Clean("/" + header.Name))
		switch {
		case file == ".wh."+diskFolder && folder == "/", folder == "/"+diskFolder+"/" && strings.HasPrefix(file, ".wh."):
			return false, errRemoved
		case folder == "/"+diskFolder+"/" && header.Typeflag == tar.TypeReg:
			return true, nil
		}
	}
	return false, errTooFar
}
