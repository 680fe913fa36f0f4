package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
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

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/oci"
	"plinth.dev/plinth/backingimage/source/servertest"
)

const (
	user     = "puller"
	password = "pAsSwOrDoFtHeTeStS"
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

// login is a credential in each of the forms it may have.
func logins(registry, user, password string) map[string]credential.Credential {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config := func(server string) credential.Secret {
		return credential.Secret(fmt.Sprintf(`{"auths": {"other.example": {"auth": "bm9ib2R5Og=="}, %q: {"auth": %q}}}`, server, auth))
	}
	return map[string]credential.Credential{
		"user and password":    {Username: credential.Secret(user), Password: credential.Secret(password)},
		"docker configuration": {DockerConfig: config(registry)},
		"docker's older form":  {DockerConfig: config("https://" + registry + "/v1/")},
		"in plain words":       {DockerConfig: credential.Secret(fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, registry, user, password))},
	}
}

func TestPrivateRegistriesAreLoggedInTo(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), user, password)
	content := servertest.Image(1, 1<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), &authn.Basic{Username: user, Password: password})
	home := t.TempDir() // the user's own login is not used
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, "config.json"))
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(logins(registry, user, password)["docker configuration"].DockerConfig.Reveal()), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range logins(registry, user, password) {
		o := options()
		o.Credential = c
		t.Run(name, func(t *testing.T) {
			servertest.MustFetch(t, servertest.Job(t, mustSource(t, registry+"/disk:1", o)), content)
		})
	}
	bad := logins(registry, user, "wRoNg")
	bad["nothing"] = credential.Credential{}
	bad["a token"] = credential.Credential{Token: password}
	bad["a login for another registry"] = credential.Credential{DockerConfig: logins("ghcr.io", user, password)["docker configuration"].DockerConfig}
	for name, c := range bad {
		o := options()
		o.Credential = c
		t.Run("wrong: "+name, func(t *testing.T) {
			mustRefuse(t, registry+"/disk:1", o, backingimage.Precondition, "401", registry, "username", ".dockerconfigjson")
		})
	}
	o := options()
	o.Credential.DockerConfig = `{"auths": {"` + password
	mustRefuse(t, registry+"/disk:1", o, backingimage.Invalid, ".dockerconfigjson", "docker login")
}

// mustRefuse checks the error of New, and that it tells no secret.
func mustRefuse(t *testing.T, reference string, o source.Options, kind backingimage.Kind, says ...string) error {
	t.Helper()
	_, err := oci.New(context.Background(), "oci://"+reference, o)
	text := fmt.Sprint(err)
	if !backingimage.Is(err, kind) {
		t.Errorf("got %v error %v, want %v", backingimage.KindOf(err), err, kind)
	}
	for _, want := range says {
		if !strings.Contains(text, want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
	for _, secret := range []string{password, "wRoNg", base64.StdEncoding.EncodeToString([]byte(user + ":" + password)), "Bearer ", "Basic "} {
		if strings.Contains(text, secret) {
			t.Errorf("the message tells %q: %v", secret, err)
		}
	}
	return err
}

func TestWhatIsNoDiskIsRefused(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	text := []byte("text")
	helm := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.cncf.helm.config.v1+json")
	folder := mustAppend(t, mustArtifact(t))
	folder, err := mutate.Append(folder, mutate.Addendum{Layer: static.NewLayer(text, "application/vnd.oci.image.layer.v1.tar"), Annotations: map[string]string{"io.deis.oras.content.unpack": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	nothing := archive(gzipped, types.OCILayer, "etc/passwd", "root")
	for name, c := range map[string]struct {
		image v1.Image
		kind  backingimage.Kind
		says  string
	}{
		"helm chart":        {mustAppend(t, helm, static.NewLayer(text, "application/vnd.cncf.helm.chart.content.v1.tar+gzip")), backingimage.Unsupported, "helm.chart"},
		"two files":         {mustArtifact(t, file([]byte("a")), file([]byte("b"))), backingimage.Unsupported, "2 layers"},
		"no file":           {mustArtifact(t), backingimage.Unsupported, "0 layers"},
		"a folder":          {folder, backingimage.Unsupported, "push the file itself"},
		"a signature":       {mustArtifact(t, static.NewLayer(text, "application/vnd.dev.cosign.simplesigning.v1+json")), backingimage.Unsupported, "cosign"},
		"no layers":         {mustContainer(t), backingimage.Unsupported, "without layers"},
		"no tar":            {mustContainer(t, nothing, static.NewLayer(bytes.Repeat(text, 1000), types.OCIUncompressedLayer)), backingimage.Corrupt, "tar archive"},
		"broken gzip":       {mustContainer(t, nothing, static.NewLayer(gzipped(servertest.Image(1, 10_000))[:5000], types.OCILayer)), backingimage.Corrupt, "tar archive"},
		"the disk removed":  {mustContainer(t, nothing, archive(gzipped, types.OCILayer, "disk/.wh.fedora.img", "")), backingimage.Unsupported, "removes the disk"},
		"the folder's gone": {mustContainer(t, nothing, archive(gzipped, types.OCILayer, ".wh.disk", "")), backingimage.Unsupported, "removes the disk"},
		"a bomb":            {mustContainer(t, nothing, archive(gzipped, types.OCILayer, "zeros", strings.Repeat("\x00", 300<<20))), backingimage.Unsupported, "last layer"},
	} {
		t.Run(name, func(t *testing.T) {
			mustPush(t, registry+"/thing:1", c.image, authn.Anonymous)
			mustRefuse(t, registry+"/thing:1", options(), c.kind, c.says)
		})
	}
}

func TestRefusalsAreClassified(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	digest := mustPush(t, registry+"/disk:1", mustArtifact(t, file(servertest.Image(1, 512))), authn.Anonymous)
	nothing := "sha256:" + strings.Repeat("ab", 32)
	denied := options()
	denied.AllowCIDRs = []netip.Prefix{}
	for _, c := range []struct {
		name, reference string
		o               source.Options
		kind            backingimage.Kind
		says            string
	}{
		{"no such tag", registry + "/disk:2", options(), backingimage.NotFound, "404"},
		{"no such repository", registry + "/nothing:1", options(), backingimage.NotFound, "404"},
		{"no such digest", registry + "/disk@" + nothing, options(), backingimage.NotFound, "404"},
		{"a tag of another digest", registry + "/disk:1@" + nothing, options(), backingimage.NotFound, "404"},
		{"no tag", registry + "/disk", options(), backingimage.Invalid, "neither a tag nor a digest"},
		{"loopback", registry + "/disk@" + digest, denied, backingimage.Precondition, "loopback"},
		{"metadata", "169.254.169.254/disk:1", options(), backingimage.Precondition, "metadata"},
		{"nobody listens", "127.0.0.1:1/disk:1", options(), backingimage.NotReady, "refused"},
		{"time", registry + "/disk:1", source.Options{StallTimeout: -1}, backingimage.Invalid, "stall timeout"},
	} {
		t.Run(c.name, func(t *testing.T) { mustRefuse(t, c.reference, c.o, c.kind, c.says) })
	}
}

// front is a server before a registry that may answer itself.
func front(t *testing.T, registry string, answer func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !answer(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return server.Listener.Addr().String()
}

func TestARegistryThatLiesIsFoundOut(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 1<<20)
	digest := mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), authn.Anonymous)
	other := mustPush(t, registry+"/disk:2", mustArtifact(t, file(servertest.Image(2, 1<<20))), authn.Anonymous)
	on := func(part string, answer http.HandlerFunc) string {
		return front(t, registry, func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, part) {
				answer(w, r)
				return true
			}
			return false
		})
	}
	t.Run("about a manifest", func(t *testing.T) {
		lying := front(t, registry, func(_ http.ResponseWriter, r *http.Request) bool {
			r.URL.Path = strings.Replace(r.URL.Path, digest, other, 1)
			return false
		})
		mustRefuse(t, lying+"/disk@"+digest, options(), backingimage.Corrupt, other)
		mustRefuse(t, lying+"/disk:2@"+digest, options(), backingimage.Corrupt, other)
	})
	t.Run("about an endless manifest", func(t *testing.T) {
		lying := on("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			for range 100 {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<20)); err != nil {
					return
				}
			}
		})
		mustRefuse(t, lying+"/disk:1", options(), backingimage.Invalid, "4194304 bytes")
	})
	t.Run("about a manifest that is none", func(t *testing.T) {
		lying := on("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			io.WriteString(w, `{"layers": [{"digest": "`+password)
		})
		mustRefuse(t, lying+"/disk:1", options(), backingimage.Invalid, "cannot be read")
	})
	t.Run("about the size of a blob", func(t *testing.T) {
		lying := on("/blobs/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "524288")
			w.Write(content[:1<<19])
		})
		if _, err := mustSource(t, lying+"/disk:1", options()).Open(context.Background(), 0, ""); !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), "524288 bytes") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("about the bytes of a blob", func(t *testing.T) {
		lying := on("/blobs/", func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(servertest.Image(3, 1<<20)))
		})
		job := servertest.Job(t, mustSource(t, lying+"/disk:1", options()))
		job.Checksum = strings.Repeat("ab", 64) // of the user: it does not hide the other
		if _, err := fetch.Run(context.Background(), job, nil); !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), "what it holds is damaged") {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(job.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("something is left: %v", err)
		}
	})
	t.Run("about ranges", func(t *testing.T) {
		lying := on("/blobs/", func(w http.ResponseWriter, _ *http.Request) { w.Write(content) })
		s := mustSource(t, lying+"/disk:1", options())
		body, err := s.Open(context.Background(), 1000, "")
		if err != nil || body.Offset != 0 {
			t.Fatalf("got %+v, %v", body, err)
		}
		body.Close()
		if _, err := s.OpenRange(context.Background(), 0, 1000, body.Validator); !backingimage.Is(err, backingimage.Precondition) {
			t.Errorf("a piece: %v", err)
		}
	})
}

func TestTheUsersChecksumIsCheckedBesideTheRegistrys(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(servertest.Image(1, 1<<20))), authn.Anonymous)
	for _, wrong := range []string{strings.Repeat("ab", 64), strings.Repeat("ab", 32)} {
		job := servertest.Job(t, mustSource(t, registry+"/disk:1", options()))
		job.Checksum = wrong
		if _, err := fetch.Run(context.Background(), job, nil); !backingimage.Is(err, backingimage.Corrupt) || !strings.Contains(err.Error(), "the image asks for") {
			t.Errorf("got %v", err)
		}
	}
}

// Object stores that a registry redirects to, with presigned URLs.
func TestRedirectsNeverSeeTheLogin(t *testing.T) {
	dir := t.TempDir()
	registry := servertest.MustRegistry(t, dir, user, password)
	content := servertest.Image(1, 4<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), &authn.Basic{Username: user, Password: password})
	var asked int
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.Header.Get("Authorization") != "" || r.Referer() != "" {
			t.Errorf("the object store is told %v", r.Header)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(store.Close)
	o := options()
	o.Credential = credential.Credential{Username: user, Password: password}
	for to, says := range map[string]string{
		store.URL + "/blob?X-Signature=" + password:             "",
		"http://169.254.169.254/latest?X-Signature=" + password: "metadata",
		"http://[::1]:1/?X-Signature=" + password:               "loopback",
		"file:///etc/passwd":                                    "\"file\" address",
	} {
		redirecting := front(t, registry, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			return true
		})
		s := mustSource(t, redirecting+"/disk:1", o)
		if says == "" {
			servertest.MustFetch(t, servertest.Job(t, s), content)
			continue
		}
		_, err := s.Open(context.Background(), 0, "")
		if !backingimage.Is(err, backingimage.Precondition) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: got %v", to, err)
		}
	}
	if asked == 0 {
		t.Error("the object store was not asked")
	}
}

// tokenServer is a registry's front that wants bearer tokens, and the server that gives them.
func tokenServer(t *testing.T, registry string, give http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(give)
	t.Cleanup(server.Close)
	return front(t, registry, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer good" {
			r.Header.Del("Authorization")
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token",service="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

func TestTokensAreFetched(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 1<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), authn.Anonymous)
	private := tokenServer(t, registry, func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != user || p != password || r.URL.Query().Get("scope") != "repository:disk:pull" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, password)
			return
		}
		fmt.Fprint(w, `{"token": "good"}`)
	})
	o := options()
	o.Credential = credential.Credential{Username: user, Password: password}
	servertest.MustFetch(t, servertest.Job(t, mustSource(t, private+"/disk:1", o)), content)
	o.Credential = credential.Credential{Token: "good"}
	servertest.MustFetch(t, servertest.Job(t, mustSource(t, private+"/disk:1", o)), content)
	mustRefuse(t, private+"/disk:1", options(), backingimage.Precondition, "401")
	for name, c := range map[string]struct {
		give http.HandlerFunc
		kind backingimage.Kind
		says string
	}{
		"no token":        {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, `{"secret": %q}`, password) }, backingimage.Precondition, "does not let log in"},
		"no JSON":         {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, password) }, backingimage.Precondition, "does not let log in"},
		"an endless text": {func(w http.ResponseWriter, _ *http.Request) { io.CopyN(w, zeros{}, 100<<20) }, backingimage.Precondition, "does not let log in"},
		"not now":         {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, backingimage.NotReady, "503"},
		"a cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "{")
		}, backingimage.NotReady, "EOF"},
		"to metadata": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://169.254.169.254/", 302) }, backingimage.Precondition, "metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			mustRefuse(t, tokenServer(t, registry, c.give)+"/disk:1", options(), c.kind, c.says)
		})
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestARegistryThatIsNotReadyIsAskedLater(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(servertest.Image(1, 512))), authn.Anonymous)
	for name, c := range map[string]struct {
		status int
		after  time.Duration
	}{"429": {429, 11 * time.Second}, "503": {503, 11 * time.Second}, "500": {500, 11 * time.Second}} {
		for _, part := range []string{"/v2/", "/manifests/"} {
			busy := front(t, registry, func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, part) && !strings.Contains(r.URL.Path, part+"1") {
					return false
				}
				w.Header().Set("Retry-After", "11")
				w.WriteHeader(c.status)
				return true
			})
			err := mustRefuse(t, busy+"/disk:1", options(), backingimage.NotReady, name)
			if after := source.RetryAfter(err); after != c.after {
				t.Errorf("%s at %s: to be asked again after %s", name, part, after)
			}
		}
	}
}

func TestAStallEndsTheWait(t *testing.T) {
	registry := servertest.MustRegistry(t, t.TempDir(), "", "")
	content := servertest.Image(1, 1<<20)
	mustPush(t, registry+"/disk:1", mustArtifact(t, file(content)), authn.Anonymous)
	o := options()
	o.StallTimeout = 300 * time.Millisecond
	for _, part := range []string{"/v2/", "/manifests/1", "/blobs/"} {
		silent := front(t, registry, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, part) && !(part == "/blobs/" && strings.Contains(r.URL.Path, part)) {
				return false
			}
			if part == "/blobs/" {
				w.Header().Set("Content-Length", "1048576")
				w.Write(content[:100_000])
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
			return true
		})
		if part != "/blobs/" {
			mustRefuse(t, silent+"/disk:1", o, backingimage.NotReady, "no byte arrived")
			continue
		}
		body, err := mustSource(t, silent+"/disk:1", o).Open(context.Background(), 0, "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(body); !backingimage.Is(err, backingimage.NotReady) || !strings.Contains(err.Error(), "no byte arrived") {
			t.Errorf("in the middle of a blob: %v", err)
		}
		body.Close()
	}
}

func TestTheCallersEndIsTheCallers(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := oci.New(ctx, "oci://"+server.Listener.Addr().String()+"/disk:1", options()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
