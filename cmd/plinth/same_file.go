package main

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"io"
	"os"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/manifest"
)

// sameFile reports whether a file is the one that an image was made of.
func sameFile(ctx context.Context, f *os.File, status v1alpha1.BackingImageStatus) (bool, error) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() != status.Size {
		return false, err
	}
	if status.Checksum == "" {
		digest, err := contentDigest(ctx, f, info.Size())
		return digest == status.ContentDigest, err
	}
	h := sha512.New()
	if _, err := io.Copy(h, readerUntil{ctx, io.NewSectionReader(f, 0, info.Size())}); err != nil {
		return false, err
	}
	return hex.EncodeToString(h.Sum(nil)) == status.Checksum, nil
}

// contentDigest is the content digest that a copy made of a RAW or QCOW2 file has; of other formats it is "", since they
// are unpacked and converted by agents alone.
func contentDigest(ctx context.Context, f *os.File, bytes int64) (string, error) {
	head := make([]byte, min(format.HeadBytes, bytes))
	if _, err := f.ReadAt(head, 0); err != nil {
		return "", err
	}
	info, err := format.Probe(head, bytes, format.Limits{})
	if err != nil {
		return "", err
	}
	var digests manifest.Builder
	switch info.Format {
	case format.Raw:
		err = digestRaw(ctx, &digests, f, bytes)
	case format.QCOW2:
		var inside *format.File
		if inside, err = format.Open(f, bytes, format.Limits{}); err == nil {
			err = inside.Convert(ctx, func(c format.Chunk) error { digests.Add(c.Index, c.Data); return nil })
		}
	default:
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return digests.Manifest(info.VirtualBytes).ContentDigest(), nil
}

func digestRaw(ctx context.Context, digests *manifest.Builder, f *os.File, bytes int64) error {
	chunk := make([]byte, manifest.ChunkBytes)
	for index := int64(0); index*manifest.ChunkBytes < bytes; index++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(manifest.ChunkBytes, bytes-index*manifest.ChunkBytes)
		if _, err := f.ReadAt(chunk[:n], index*manifest.ChunkBytes); err != nil {
			return err
		}
		padded := format.Padded(n)
		clear(chunk[n:padded])
		digests.Add(index, chunk[:padded])
	}
	return nil
}

// readerUntil ends with its context.
type readerUntil struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (r readerUntil) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
