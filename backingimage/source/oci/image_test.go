package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/oci"
)

// options open 127.0.0.1.
func options() source.Options {
	return source.Options{AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, StallTimeout: 5 * time.Second}
}

// mustArtifact is what ORAS pushes for a file.
func mustArtifact(tb testing.TB, layers ...v1.Layer) v1.Image {
	tb.Helper()
	artifact := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.oci.empty.v1+json")
	return mustAppend(tb, artifact, layers...)
}

// mustContainer is a container image of the layers.
func mustContainer(tb testing.TB, layers ...v1.Layer) v1.Image {
	tb.Helper()
	return mustAppend(tb, mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
}

func mustAppend(tb testing.TB, image v1.Image, layers ...v1.Layer) v1.Image {
	tb.Helper()
	image, err := mutate.AppendLayers(image, layers...)
	if err != nil {
		tb.Fatal(err)
	}
	return image
}

// file is a layer that is a file itself.
func file(content []byte) v1.Layer {
	return static.NewLayer(content, "application/vnd.oci.image.layer.v1.tar")
}

// archive is a tar layer of files, given in pairs of name and content.
func archive(pack func([]byte) []byte, kind types.MediaType, files ...string) v1.Layer {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if strings.HasSuffix(files[i], "/") {
			h.Typeflag = tar.TypeDir
		}
		w.WriteHeader(h)
		io.WriteString(w, files[i+1])
	}
	w.Close()
	return static.NewLayer(pack(b.Bytes()), kind)
}

func plain(p []byte) []byte { return p }

func gzipped(p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	w.Close()
	return b.Bytes()
}

func zstandard(p []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(p, nil)
}

// mustPush puts an image or an index into a registry and returns its digest.
func mustPush(tb testing.TB, reference string, what remote.Taggable, auth authn.Authenticator) string {
	tb.Helper()
	ref, err := name.ParseReference(reference)
	if err != nil {
		tb.Fatal(err)
	}
	if index, ok := what.(v1.ImageIndex); ok {
		err = remote.WriteIndex(ref, index, remote.WithAuth(auth))
	} else {
		err = remote.Write(ref, what.(v1.Image), remote.WithAuth(auth))
	}
	if err != nil {
		tb.Fatal(err)
	}
	text, err := what.RawManifest()
	if err != nil {
		tb.Fatal(err)
	}
	digest, _, _ := v1.SHA256(bytes.NewReader(text))
	return digest.String()
}

func mustSource(tb testing.TB, reference string, o source.Options) *oci.Source {
	tb.Helper()
	s, err := oci.New(context.Background(), "oci://"+reference, o)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func mustRead(tb testing.TB, s source.Source) []byte {
	tb.Helper()
	body, err := s.Open(context.Background(), 0, "")
	if err != nil {
		tb.Fatal(err)
	}
	defer body.Close()
	got, err := io.ReadAll(body)
	if err != nil {
		tb.Fatal(err)
	}
	return got
}
