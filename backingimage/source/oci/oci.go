// Package oci is the source of images in container registries. Two ways of putting a disk there are read:
//
//   - an artifact of one layer, as ORAS pushes a file: the layer's blob is the disk's file;
//   - a containerDisk, as KubeVirt has them: a container image with the disk's file in the folder /disk. The blob is then the
//     layer that has the folder, a tar archive, and Archived says so.
//
// New asks the registry what the reference stands for, and from then on the source is one blob, named by its digest: a tag
// that moves moves nothing here. Resolved names the manifest, and Checksum the blob's SHA-256, which whoever reads it compares;
// a registry that serves other bytes than its manifest names is found out. The manifest itself is checked against the
// reference's digest, or, named by a tag, is what the registry says it is.
//
// Of google/go-containerregistry the names, the manifests and the login are used. Manifests and blobs are asked for here,
// because blobs must come in ranges and nothing that a registry sends may be read without a bound. Blobs are
// followed to where the registry redirects, an object store mostly, which never sees the login.
//
// Registries are asked over https; over http only when they are on localhost or a loopback, private (RFC 1918) or .local
// address and do not speak https.
package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// Source is one blob in a registry.
type Source struct {
	registry
	manifest v1.Hash
	blob     v1.Descriptor
	folder   string
}

var (
	_ source.Ranger      = (*Source)(nil)
	_ source.Resolver    = (*Source)(nil)
	_ source.Checksummed = (*Source)(nil)
	_ source.Archived    = (*Source)(nil)
)

// resolveTimeout bounds all that New asks.
const resolveTimeout = 5 * time.Minute

// New finds out what a URL that source.ValidateParameters accepts stands for. It asks the registry a few times, and gives up
// after some minutes.
//
// Errors: Invalid; NotFound; Precondition when the registry wants another login or may not be reached; Unsupported when what
// is there is no disk's image; Corrupt when a digest is wrong; NotReady when asking later may help; ctx's.
func New(ctx context.Context, raw string, o source.Options) (*Source, error) {
	o, err := o.Checked()
	if err != nil {
		return nil, err
	}
	ref, err := source.ParseOCI(raw)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	s, err := resolve(limited, raw, ref, o)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = backingimage.Errorf(backingimage.NotReady, "download %s: the registry did not tell within %s what this is; it will be tried again", raw, resolveTimeout)
	}
	return s, err
}

func resolve(ctx context.Context, raw string, ref name.Reference, o source.Options) (*Source, error) {
	r, err := login(ctx, raw, ref.Context(), o)
	if err != nil {
		return nil, err
	}
	found, err := r.find(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &Source{registry: *r, manifest: found.manifest, blob: found.blob, folder: found.folder}, nil
}

// String is the URL, which holds no secrets.
func (s *Source) String() string { return s.shown }

// Identity is the SHA-256 of the URL.
func (s *Source) Identity() string {
	sum := sha256.Sum256([]byte(s.shown))
	return hex.EncodeToString(sum[:])
}

// Resolved is oci://registry/repository@sha256:… of the manifest that the blob is in.
func (s *Source) Resolved() string {
	return source.SchemeOCI + "://" + s.repository.Digest(s.manifest.String()).Name()
}

// Checksum is the blob's, which its manifest names.
func (s *Source) Checksum() source.Checksum {
	return source.Checksum{Algorithm: source.SHA256, Hex: s.blob.Digest.Hex}
}

// ArchiveFolder implements source.Archived.
func (s *Source) ArchiveFolder() string { return s.folder }

// validator of the one version that this source has.
func (s *Source) validator() string { return s.blob.Digest.String() }

// Open begins anew when the validator is another blob's: the tag has moved since.
func (s *Source) Open(ctx context.Context, offset int64, validator string) (*source.Body, error) {
	if offset > 0 && (validator == "" || validator == s.validator()) {
		body, err := s.open(ctx, offset, -1)
		if !errors.Is(err, source.ErrUnfit) {
			return body, err
		}
	}
	return s.open(ctx, 0, -1)
}

// OpenRange implements source.Ranger.
func (s *Source) OpenRange(ctx context.Context, offset, bytes int64, validator string) (io.ReadCloser, error) {
	if validator != s.validator() {
		return nil, backingimage.Errorf(backingimage.Precondition, "download %s: it stands for another file now", s)
	}
	body, err := s.open(ctx, offset, bytes)
	if errors.Is(err, source.ErrUnfit) {
		return nil, backingimage.Errorf(backingimage.Precondition, "download %s: the registry does not give the %d bytes from byte %d of %s", s, bytes, offset, s.blob.Digest)
	}
	if err != nil {
		return nil, err
	}
	return body.ReadCloser, nil
}

// CloseIdleConnections closes the connections that wait for a next request.
func (s *Source) CloseIdleConnections() {
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
}

// open asks for bytes bytes at offset, or for all from there when bytes is negative.
func (s *Source) open(ctx context.Context, offset, bytes int64) (*source.Body, error) {
	body := &source.Body{Bytes: s.blob.Size, Validator: s.validator(), Ranges: true}
	reader, err := source.Watch(ctx, s.options, s.shown, func(ctx context.Context) (io.ReadCloser, error) {
		resp, err := s.get(ctx, s.blobURL(s.blob.Digest), blobHeader(offset, bytes))
		if err != nil {
			return nil, err
		}
		if body.Offset, err = s.accept(resp, offset, bytes); err != nil {
			resp.Body.Close()
			return nil, err
		}
		return resp.Body, nil
	})
	if err != nil {
		return nil, err
	}
	body.ReadCloser = reader
	return body, nil
}

// accept judges an answer, and returns the offset at which its bytes begin.
func (s *Source) accept(resp *http.Response, offset, bytes int64) (int64, error) {
	if resp.StatusCode != http.StatusPartialContent {
		if bytes >= 0 {
			return 0, source.ErrUnfit
		}
		return 0, s.checkSize(resp.ContentLength)
	}
	first, last, size, ok := source.ParseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case !ok, first != offset, bytes >= 0 && bytes != last-first+1, resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
		return 0, source.ErrUnfit
	}
	return offset, s.checkSize(size)
}

// checkSize compares what the server tells with the manifest; -1 is nothing told.
func (s *Source) checkSize(bytes int64) error {
	if bytes >= 0 && bytes != s.blob.Size {
		return backingimage.Errorf(backingimage.Corrupt, "the registry serves %d bytes for the blob %s, which has %d bytes by its manifest; push the image again", bytes, s.blob.Digest, s.blob.Size)
	}
	return nil
}
