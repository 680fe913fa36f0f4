package oci_test

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/source/servertest"
)

const (
	user     = "puller"
	password = "pAsSwOrDoFtHeTeStS"
)

func TestArtifactsAreFetched(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 9<<20)
	for kind, text := range map[string][]byte{"raw": content, "qcow2": servertest.MustQCOW2(t, content)} {
		reference := registry + "/disks/fedora:" + kind
		digest := mustPush(t, reference, mustArtifact(t, file(text)), authn.Anonymous)
		s := mustSource(t, reference, options())
		result := servertest.MustFetch(t, servertest.Job(t, s), content)
		if want := "oci://" + registry + "/disks/fedora@" + digest; result.Format != kind || result.Resolved != want || s.ArchiveFolder() != "" {
			t.Errorf("%s: the result is %+v, want it resolved as %s", kind, result, want)
		}
		servertest.MustFetch(t, servertest.Job(t, mustSource(t, registry+"/disks/fedora@"+digest, options())), content)
		servertest.MustFetch(t, servertest.Job(t, mustSource(t, reference+"@"+digest, options())), content)
	}
}

func TestAnImageConfigWithALayerOfItsOwnKindIsAnArtifact(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 1<<20)
	mustPush(t, registry+"/disk:1", mustContainer(t, static.NewLayer(content, "application/x-qemu-disk")), authn.Anonymous)
	servertest.MustFetch(t, servertest.Job(t, mustSource(t, registry+"/disk:1", options())), content)
}

func TestTheLayerWithTheDiskIsFound(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	disk := string(servertest.Image(1, 1<<20))
	with := archive(plain, types.OCIUncompressedLayer, "disk/", "", "disk/fedora.img", disk)
	other := func(pack func([]byte) []byte, kind types.MediaType) v1.Layer {
		return archive(pack, kind, "etc/passwd", "root", "disk.txt", "no", "disk/", "", "x/disk/a", "no")
	}
	for name, layers := range map[string][]v1.Layer{
		"one layer":          {with},
		"at the top":         {other(gzipped, types.OCILayer), with},
		"below others":       {with, other(gzipped, types.DockerLayer), other(zstandard, types.OCILayerZStd), other(plain, types.OCIUncompressedLayer)},
		"in the middle":      {other(gzipped, types.OCILayer), with, other(gzipped, types.OCILayer)},
		"with a rooted name": {other(gzipped, types.OCILayer), with},
		"the upper of two":   {archive(gzipped, types.OCILayer, "./disk/old.img", "old"), with, other(gzipped, types.OCILayer)},
	} {
		mustPush(t, registry+"/container:1", mustContainer(t, layers...), authn.Anonymous)
		s := mustSource(t, registry+"/container:1", options())
		want, _ := with.Digest()
		if s.ArchiveFolder() != "disk" || s.Checksum().Hex != want.Hex {
			t.Errorf("%s: folder %q of %s, want %s", name, s.ArchiveFolder(), s.Checksum(), want)
		}
		compressed, _ := with.Compressed()
		text, _ := io.ReadAll(compressed)
		if got := mustRead(t, s); !bytes.Equal(got, text) {
			t.Errorf("%s: %d bytes that are not the layer's", name, len(got))
		}
	}
}

func TestAnIndexIsFollowedToThisMachine(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	platform := func(os, arch string) v1.Descriptor {
		return v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch}}
	}
	mine, others := servertest.Image(1, 1<<20), servertest.Image(2, 1<<20)
	good := mustArtifact(t, file(mine))
	digest, _ := good.Digest()
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: mustArtifact(t, file(others)), Descriptor: platform("linux", "s390x")},
		mutate.IndexAddendum{Add: good, Descriptor: platform("linux", runtime.GOARCH)},
		mutate.IndexAddendum{Add: mustArtifact(t, file(others[:512])), Descriptor: platform("unknown", "unknown")})
	top := mustPush(t, registry+"/many:1", index, authn.Anonymous)
	for _, reference := range []string{"many:1", "many@" + top} {
		s := mustSource(t, registry+"/"+reference, options())
		if got := mustRead(t, s); !bytes.Equal(got, mine) || s.Resolved() != "oci://"+registry+"/many@"+digest.String() {
			t.Errorf("%s: %d bytes of %s", reference, len(got), s.Resolved())
		}
	}
	mustPush(t, registry+"/one:1", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: good}), authn.Anonymous)
	if got := mustRead(t, mustSource(t, registry+"/one:1", options())); !bytes.Equal(got, mine) {
		t.Errorf("the only one: %d bytes", len(got))
	}
	mustPush(t, registry+"/none:1", mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: good, Descriptor: platform("linux", "s390x")}), authn.Anonymous)
	mustRefuse(t, registry+"/none:1", options(), backingimage.Unsupported, "linux/"+runtime.GOARCH, "s390x")
}

func TestACutConnectionGoesOnWhereItBroke(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 9<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), authn.Anonymous)
	network := servertest.MustCutter(t, registry)
	s := mustSource(t, network.Address+"/disk:1", options())
	network.Given()
	network.Cut(4, 1<<20)
	servertest.MustFetch(t, servertest.Job(t, s), content)
	if left, given := network.Left(), network.Given(); left != 0 || given > 10<<20 {
		t.Errorf("%d cuts were not made; %d bytes came for %d", left, given, len(content))
	}
}

func TestATagThatMovesMovesNothing(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	before, after := servertest.Image(1, 9<<20), servertest.Image(2, 9<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(before)), authn.Anonymous)
	network := servertest.MustCutter(t, registry)
	s := mustSource(t, network.Address+"/disk:1", options())
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(after)), authn.Anonymous)
	network.Cut(2, 3<<20)
	servertest.MustFetch(t, servertest.Job(t, s), before)

	again := mustSource(t, network.Address+"/disk:1", options())
	old := "sha256:" + s.Checksum().Hex
	body, err := again.Open(context.Background(), 1<<20, old)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); err != nil || body.Offset != 0 || !bytes.Equal(got, after) {
		t.Errorf("opened anew it gives %d bytes from %d, %v", len(got), body.Offset, err)
	}
	if _, err := again.OpenRange(context.Background(), 0, 1000, old); !backingimage.Is(err, backingimage.Precondition) {
		t.Errorf("a piece of what the tag stood for: %v", err)
	}
}

func TestPiecesAreGiven(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 1<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), authn.Anonymous)
	s := mustSource(t, registry+"/disk:1", options())
	body, err := s.Open(context.Background(), 4096, "")
	if err != nil {
		t.Fatal(err)
	}
	body.Close()
	if body.Bytes != 1<<20 || body.Offset != 4096 || !body.Ranges || body.Validator != "sha256:"+s.Checksum().Hex {
		t.Errorf("described as %+v", body)
	}
	for _, offset := range []int64{0, 4096, 1<<20 - 1000} {
		piece, err := s.OpenRange(context.Background(), offset, 1000, body.Validator)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(piece)
		piece.Close()
		if err != nil || !bytes.Equal(got, content[offset:offset+1000]) {
			t.Errorf("the piece at %d: %d bytes, %v", offset, len(got), err)
		}
	}
	if _, err := s.OpenRange(context.Background(), 2<<20, 1000, body.Validator); !backingimage.Is(err, backingimage.Precondition) {
		t.Errorf("a piece beyond the end: %v", err)
	}
	s.CloseIdleConnections()
}
