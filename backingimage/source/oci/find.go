package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source"
)

// found is what a reference stands for.
type found struct {
	manifest v1.Hash
	blob     v1.Descriptor
	folder   string
}

// find follows a reference to the blob that holds the disk.
func (r *registry) find(ctx context.Context, ref name.Reference) (found, error) {
	got, err := r.manifest(ctx, ref.Identifier())
	if err != nil {
		return found{}, err
	}
	if got.kind.IsIndex() {
		one, err := forThisMachine(got.text)
		if err != nil {
			return found{}, r.named(err)
		}
		if got, err = r.manifest(ctx, one.String()); err != nil {
			return found{}, err
		}
	}
	if !got.kind.IsImage() {
		return found{}, r.named(backingimage.Errorf(backingimage.Unsupported, "is %q, not an image; name one whose manifest is of an image", shortened(string(got.kind))))
	}
	m, err := v1.ParseManifest(bytes.NewReader(got.text))
	if err != nil {
		return found{}, r.named(backingimage.Errorf(backingimage.Invalid, "has a manifest that cannot be read"))
	}
	if err := checkLayers(m); err != nil {
		return found{}, r.named(err)
	}
	return r.choose(ctx, got.digest, m)
}

// named puts the source's name before an error that says what is wrong with it.
func (r *registry) named(err error) error {
	return backingimage.Errorf(backingimage.KindOf(err), "download %s: %w", r.shown, err)
}

// manifest is one as the registry gave it.
type manifest struct {
	kind   types.MediaType
	digest v1.Hash
	text   []byte
}

// accepted are the manifests that we read.
var accepted = []types.MediaType{types.OCIManifestSchema1, types.DockerManifestSchema2, types.OCIImageIndex, types.DockerManifestList}

// maxManifest is what registries allow, in bytes.
const maxManifest = 4 << 20

// manifest gets one by tag or digest, and checks the digest.
func (r *registry) manifest(ctx context.Context, identifier string) (manifest, error) {
	header := http.Header{}
	for _, kind := range accepted {
		header.Add("Accept", string(kind))
	}
	var m manifest
	body, err := source.Watch(ctx, r.options, r.shown, func(ctx context.Context) (io.ReadCloser, error) {
		resp, err := r.get(ctx, r.manifestURL(identifier), header)
		if err != nil {
			return nil, err
		}
		kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		m.kind = types.MediaType(kind)
		return resp.Body, nil
	})
	if err != nil {
		return manifest{}, err
	}
	defer body.Close()
	if m.text, err = io.ReadAll(body); err != nil {
		return manifest{}, err
	}
	if len(m.text) >= maxManifest {
		return manifest{}, r.named(backingimage.Errorf(backingimage.Invalid, "has a manifest of more than %d bytes", maxManifest))
	}
	if m.digest, _, err = v1.SHA256(bytes.NewReader(m.text)); err != nil {
		return manifest{}, fmt.Errorf("hash manifest: %w", err)
	}
	if strings.HasPrefix(identifier, "sha256:") && identifier != m.digest.String() {
		return manifest{}, r.named(backingimage.Errorf(backingimage.Corrupt, "the registry serves a manifest with the digest %s for %s; push the image again, or use another registry", m.digest, identifier))
	}
	return m, nil
}

// forThisMachine chooses from an index: the image for Linux on this processor, or the only one, when it names no platform.
func forThisMachine(text []byte) (v1.Hash, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(text))
	if err != nil {
		return v1.Hash{}, backingimage.Errorf(backingimage.Invalid, "has an index that cannot be read")
	}
	want := v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	var have []string
	for _, m := range index.Manifests {
		if m.Platform == nil && len(index.Manifests) == 1 || m.Platform != nil && m.Platform.Satisfies(want) {
			return m.Digest, nil
		}
		if m.Platform != nil && len(have) < 8 {
			have = append(have, shortened(m.Platform.String()))
		}
	}
	return v1.Hash{}, backingimage.Errorf(backingimage.Unsupported, "has no image for %s, only for [%s]; name the digest of the image that is meant", want, strings.Join(have, ", "))
}

// shortened bounds what a message repeats of what a registry sent, and quotes what is not to be printed.
func shortened(s string) string {
	const most = 80
	s = strings.Trim(fmt.Sprintf("%+q", s), `"`)
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}

// checkLayers refuses what the rest relies on: a size, and a digest that is SHA-256.
func checkLayers(m *v1.Manifest) error {
	for _, layer := range m.Layers {
		if layer.Digest.Algorithm != "sha256" || layer.Size < 0 {
			return backingimage.Errorf(backingimage.Invalid, "has a manifest with a layer without a size or a SHA-256")
		}
	}
	return nil
}

// diskFolder is where a containerDisk has its disk's file.
const diskFolder = "disk"

// choose finds the blob that holds the disk.
func (r *registry) choose(ctx context.Context, digest v1.Hash, m *v1.Manifest) (found, error) {
	if !m.Config.MediaType.IsConfig() || len(m.Layers) == 1 && !m.Layers[0].MediaType.IsLayer() {
		if err := checkArtifact(m); err != nil {
			return found{}, r.named(err)
		}
		return found{manifest: digest, blob: m.Layers[0]}, nil
	}
	blob, err := r.layerWithDisk(ctx, m.Layers)
	return found{manifest: digest, blob: blob, folder: diskFolder}, err
}

// checkArtifact refuses what cannot be a disk's file: several layers, folders, and the many things that registries hold
// besides images.
func checkArtifact(m *v1.Manifest) error {
	if len(m.Layers) != 1 {
		return backingimage.Errorf(backingimage.Unsupported, "is an artifact of %d layers (config %s); an image is a containerDisk or an artifact of one layer, the disk's file", len(m.Layers), shortened(string(m.Config.MediaType)))
	}
	layer := m.Layers[0]
	kind := strings.ToLower(string(layer.MediaType))
	for _, end := range []string{"json", "tar+gzip", "tar.gzip", "tar+zstd", "xml", "yaml"} {
		if strings.HasSuffix(kind, end) || layer.Annotations["io.deis.oras.content.unpack"] == "true" {
			return backingimage.Errorf(backingimage.Unsupported, "is an artifact whose layer is %s (config %s), not a disk's file; push the file itself as the artifact's one layer, or make a containerDisk", shortened(kind), shortened(string(m.Config.MediaType)))
		}
	}
	return nil
}
