package node_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/credential"
	"plinth.dev/plinth/backingimage/disk/disktest"
	"plinth.dev/plinth/backingimage/node"
	"plinth.dev/plinth/backingimage/node/nodetest"
	"plinth.dev/plinth/backingimage/source"
	"plinth.dev/plinth/backingimage/source/oci"
	"plinth.dev/plinth/backingimage/source/s3"
	"plinth.dev/plinth/backingimage/source/servertest"
)

func TestImagesComeFromObjectStoresAndRegistries(t *testing.T) {
	disktest.NeedRoot(t)
	m := nodetest.MustStart(t, disktest.MustPool(t, nodetest.PoolBytes))
	m.Stop()
	secrets, err := credential.OpenDirectory(filepath.Join(t.TempDir(), "secrets"))
	must(t, err)
	must(t, secrets.Put(context.Background(), credential.Ref{Namespace: "vms", Name: "keys"}, map[string][]byte{
		credential.KeyAccessKeyID: []byte("AKIATEST"), credential.KeySecretKey: []byte("hunter2"),
	}))
	m.Credentials = secrets
	m.Openers = map[string]node.Opener{
		source.SchemeS3: func(_ context.Context, parameters map[string]string, o source.Options) (source.Source, error) {
			return s3.New(parameters, o)
		},
		source.SchemeOCI: func(ctx context.Context, parameters map[string]string, o source.Options) (source.Source, error) {
			return oci.New(ctx, parameters["url"], o)
		},
	}
	m.Start()
	content := servertest.Image(1, 4<<20)

	t.Run("a private object is read with the keys of the secret that the image names, and the status tells none", func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.Mkdir(filepath.Join(dir, "golden"), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "golden", "fedora.img"), content, 0o600))
		address := servertest.MustS3(t, dir, "AKIATEST", "hunter2")
		create := func(name string, further map[string]v1alpha1.SourceParameter) {
			p := map[string]v1alpha1.SourceParameter{"url": "s3://golden/fedora.img", "endpoint": v1alpha1.SourceParameter("http://" + address), "region": "eu-test-1"}
			for key, value := range further {
				p[key] = value
			}
			_, err := m.Store.Images.Create(context.Background(), &v1alpha1.BackingImage{
				ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.BackingImageSpec{SourceType: v1alpha1.SourceDownload, SourceParameters: p, MinNumberOfCopies: 1},
			})
			must(t, err)
		}
		create("private", map[string]v1alpha1.SourceParameter{"secret": "keys", "secret-namespace": "vms"})
		mustHold(t, m, m.UntilReady("private", "1/1"), content)
		create("anonymous", nil)
		i := m.UntilState("anonymous", v1alpha1.CopyFailed)
		if !strings.Contains(i.Status.Message, "AWS_ACCESS_KEY_ID") || strings.Contains(i.Status.Message, "hunter2") {
			t.Errorf("message is %q", i.Status.Message)
		}
	})

	t.Run("an artifact's digest is in the status", func(t *testing.T) {
		registry := servertest.MustRegistry(t, t.TempDir(), "", "")
		artifact, err := mutate.AppendLayers(mutate.ConfigMediaType(empty.Image, "application/vnd.oci.empty.v1+json"), static.NewLayer(content, "application/octet-stream"))
		must(t, err)
		ref, err := name.ParseReference(registry + "/vms/fedora:42")
		must(t, err)
		must(t, remote.Write(ref, artifact))
		digest, err := artifact.Digest()
		must(t, err)
		m.CreateImage("artifact", "oci://"+registry+"/vms/fedora:42", "", 1)
		i := m.UntilReady("artifact", "1/1")
		mustHold(t, m, i, content)
		if want := "oci://" + registry + "/vms/fedora@" + digest.String(); i.Status.ResolvedSource != want {
			t.Errorf("resolved as %q, want %q", i.Status.ResolvedSource, want)
		}
	})

	t.Run("a containerDisk's file is taken out of its layer", func(t *testing.T) {
		registry := servertest.MustRegistry(t, t.TempDir(), "", "")
		var layer bytes.Buffer
		w := tar.NewWriter(&layer)
		must(t, w.WriteHeader(&tar.Header{Name: "disk/fedora.img", Mode: 0o644, Size: int64(len(content))}))
		_, err := w.Write(content)
		must(t, errors.Join(err, w.Close()))
		image, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer.Bytes(), types.DockerUncompressedLayer))
		must(t, err)
		ref, err := name.ParseReference(registry + "/vms/fedora:disk")
		must(t, err)
		must(t, remote.Write(ref, image))
		m.CreateImage("container", "oci://"+registry+"/vms/fedora:disk", "", 1)
		mustHold(t, m, m.UntilReady("container", "1/1"), content)
	})

	t.Run("what a registry does not have fails for good, and what is not linked says so", func(t *testing.T) {
		registry := servertest.MustRegistry(t, t.TempDir(), "", "")
		m.CreateImage("nothing", "oci://"+registry+"/nothing:1", "", 1)
		i := m.UntilState("nothing", v1alpha1.CopyFailed)
		if !strings.Contains(i.Status.Message, "404") || strings.Contains(i.Status.Message, "next try") {
			t.Errorf("message is %q", i.Status.Message)
		}
		m.Stop()
		m.Openers = nil
		m.Start()
		m.CreateImage("unlinked", "oci://"+registry+"/nothing:1", "", 1)
		if i := m.UntilState("unlinked", v1alpha1.CopyFailed); !strings.Contains(i.Status.Message, "built without oci://") {
			t.Errorf("message is %q", i.Status.Message)
		}
	})
}

// mustHold checks the content of an image's copy.
func mustHold(t *testing.T, m *nodetest.Machine, i *v1alpha1.BackingImage, content []byte) {
	t.Helper()
	if got, err := os.ReadFile(m.Path(0, i)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the copy of %s differs (%v)", i.Name, err)
	}
}
