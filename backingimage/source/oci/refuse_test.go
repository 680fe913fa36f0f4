package oci_test

import (
	"bytes"
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
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/fetch"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/oci"
	"plinth.dev/plinth/backingimage/source/servertest"
)

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
