package embedded_test

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/backingimage/store/join"
)

// otherAddress is one of every Linux machine at which nothing of a test listens by default.
const otherAddress = "127.0.0.2"

// mustJoin returns what a node of that name connects with.
func mustJoin(t testing.TB, dir, node string) *rest.Config {
	t.Helper()
	content, server, err := join.Open(join.DirectoryBelow(dir)).Kubeconfig(node)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := clientcmd.RESTConfigFromKubeConfig(content)
	if err != nil || cfg.Host != server {
		t.Fatalf("it connects to %v, want %s (%v)", cfg, server, err)
	}
	return cfg
}

func TestListenForOthers(t *testing.T) {
	for name, c := range map[string]struct{ listen, advertise, host string }{
		"every address":            {"0.0.0.0:0", otherAddress, otherAddress},
		"one address":              {otherAddress + ":0", "", otherAddress},
		"every address, by a name": {"0.0.0.0:0", "localhost", "localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(tempDir(t), "data")
			s := mustServe(t, embedded.Options{Dir: dir, Listen: c.listen, Advertise: c.advertise})
			cfg := mustJoin(t, dir, "n2")
			if host, _, _ := net.SplitHostPort(strings.TrimPrefix(cfg.Host, "https://")); host != c.host {
				t.Errorf("others are told %s", cfg.Host)
			}
			if got := status(t, cfg, cfg.BearerToken, "/apis/plinth.dev/v1alpha1/backingimages"); got != http.StatusOK {
				t.Errorf("the node gets %d", got)
			}
			if got := status(t, s.RESTConfig(), s.RESTConfig().BearerToken, "/apis"); got != http.StatusOK {
				t.Errorf("this machine gets %d", got)
			}
		})
	}
}

func TestNewAddressKeepsTheTrustOfNodes(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	first := mustServe(t, embedded.Options{Dir: dir, Listen: "0.0.0.0:0", Advertise: otherAddress})
	cfg := mustJoin(t, dir, "n2")
	mustStop(t, first)
	second := mustServe(t, embedded.Options{Dir: dir, Listen: "0.0.0.0:0", Advertise: "127.0.0.3"})
	if string(second.RESTConfig().CAData) == string(first.RESTConfig().CAData) {
		t.Fatal("the certificate is the old one")
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(cfg.Host, "https://"))
	for _, host := range []string{"127.0.0.1", "127.0.0.3"} {
		cfg.Host = "https://" + net.JoinHostPort(host, port)
		if got := status(t, cfg, cfg.BearerToken, "/apis"); got != http.StatusOK {
			t.Errorf("%s: a node that joined before gets %d", host, got)
		}
	}
}

func TestTokensOfNodes(t *testing.T) {
	dir := filepath.Join(tempDir(t), "data")
	mustServe(t, embedded.Options{Dir: dir})
	tokens := join.Open(join.DirectoryBelow(dir))
	can := func(cfg *rest.Config) int { return status(t, cfg, cfg.BearerToken, "/apis") }
	first, other := mustJoin(t, dir, "n2"), mustJoin(t, dir, "n3")
	if can(first) != http.StatusOK || can(other) != http.StatusOK {
		t.Fatal("they cannot join")
	}
	t.Run("a new one ends the last", func(t *testing.T) {
		second := mustJoin(t, dir, "n2")
		if can(first) != http.StatusUnauthorized || can(second) != http.StatusOK {
			t.Errorf("the first gets %d, the second %d", can(first), can(second))
		}
		first = second
	})
	t.Run("one that is taken back opens nothing, and bars no other", func(t *testing.T) {
		if err := tokens.Revoke("n2"); err != nil {
			t.Fatal(err)
		}
		if can(first) != http.StatusUnauthorized || can(other) != http.StatusOK {
			t.Errorf("it gets %d, the other %d", can(first), can(other))
		}
		if err := tokens.Revoke("n2"); !backingimage.Is(err, backingimage.NotFound) {
			t.Errorf("again: %v", err)
		}
	})
	t.Run("its hash is no token", func(t *testing.T) {
		hash := strings.TrimSpace(mustRead(t, filepath.Join(join.DirectoryBelow(dir), "nodes", "n3")))
		if got := status(t, other, hash, "/apis"); got != http.StatusUnauthorized {
			t.Errorf("got %d", got)
		}
	})
}

// nodeWorld has objects of two nodes, and the clients of n1 and of the owner.
func nodeWorld(t *testing.T) (owner, n1 *store.Client) {
	t.Helper()
	dir := filepath.Join(tempDir(t), "data")
	s := mustServe(t, embedded.Options{Dir: dir})
	owner, n1 = mustClient(t, s.RESTConfig()), mustClient(t, mustJoin(t, dir, "n1"))
	ctx := testContext(t)
	for _, name := range []string{"n1", "n2"} {
		_, err := owner.Nodes.Create(ctx, &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		must(t, err)
		_, err = owner.Disks.Create(ctx, diskOf("d-"+name, name), metav1.CreateOptions{})
		must(t, err)
		_, err = owner.Volumes.Create(ctx, volumeOf("v-"+name, name), metav1.CreateOptions{})
		must(t, err)
	}
	_, err := owner.Images.Create(ctx, &v1alpha1.BackingImage{ObjectMeta: metav1.ObjectMeta{Name: "i"}, Spec: v1alpha1.BackingImageSpec{SourceType: v1alpha1.SourceUpload}}, metav1.CreateOptions{})
	must(t, err)
	return owner, n1
}

func diskOf(name, node string) *v1alpha1.Disk {
	return &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.DiskSpec{NodeName: node, Path: "/srv/" + name}}
}

func volumeOf(name, node string) *v1alpha1.Volume {
	return &v1alpha1.Volume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.VolumeSpec{Name: name, CapacityBytes: 1 << 20, DiskUUID: "d-" + node, NodeName: node}}
}

func TestWhatNodesMayWrite(t *testing.T) {
	owner, n1 := nodeWorld(t)
	take := []byte(`{"spec":{"nodeName":"n1"}}`)
	report := []byte(`{"status":{"version":"x"}}`)
	state := []byte(`{"status":{"state":"ready"}}`)
	give := []byte(`{"spec":{"nodeName":"n2"}}`)
	tag := []byte(`{"spec":{"tags":["fast"]}}`)
	label := []byte(`{"metadata":{"labels":{"a":"b"}}}`)
	for _, c := range []struct {
		name    string
		allowed bool
		try     func(context.Context) error
	}{
		{"report its node", true, patch(n1.Nodes, "n1", report, "status")},
		{"report another node", false, patch(n1.Nodes, "n2", report, "status")},
		{"change another node", false, patch(n1.Nodes, "n2", tag)},
		{"register another node", false, create(n1.Nodes, &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: "n3"}})},
		{"register a disk", true, create(n1.Disks, diskOf("d-new", "n1"))},
		{"register a disk of another", false, create(n1.Disks, diskOf("d-foreign", "n2"))},
		{"report its volume", true, patch(n1.Volumes, "v-n1", state, "status")},
		{"report another's volume", false, patch(n1.Volumes, "v-n2", state, "status")},
		{"give its disk away", false, patch(n1.Disks, "d-n1", give)},
		{"take over a disk that was moved", true, patch(n1.Disks, "d-n2", take)},
		{"take over what is on it", true, patch(n1.Volumes, "v-n2", take)},
		{"make a volume", false, create(n1.Volumes, volumeOf("v-new", "n1"))},
		{"delete its volume", false, func(ctx context.Context) error { return n1.Volumes.Delete(ctx, "v-n1", metav1.DeleteOptions{}) }},
		{"delete its disk", false, func(ctx context.Context) error { return n1.Disks.Delete(ctx, "d-n1", metav1.DeleteOptions{}) }},
		{"change an image", false, patch(n1.Images, "i", label)},
		{"report an image", false, patch(n1.Images, "i", state, "status")},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.try(testContext(t))
			if c.allowed && err != nil || !c.allowed && !apierrors.IsForbidden(err) {
				t.Errorf("allowed: %v, got %v", c.allowed, err)
			}
		})
	}
	t.Run("and it reads everything", func(t *testing.T) {
		got, err := n1.Images.List(testContext(t), metav1.ListOptions{})
		must(t, err)
		want, err := owner.Images.List(testContext(t), metav1.ListOptions{})
		must(t, err)
		if !equality.Semantic.DeepEqual(got.Items, want.Items) || len(got.Items) != 1 {
			t.Errorf("it reads %v", got.Items)
		}
	})
}

// patcher and creator are what a kind's client does here.
type patcher[T any] interface {
	Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions, subresources ...string) (T, error)
}

type creator[T any] interface {
	Create(ctx context.Context, object T, o metav1.CreateOptions) (T, error)
}

func patch[T any](client patcher[T], name string, change []byte, subresources ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := client.Patch(ctx, name, types.MergePatchType, change, metav1.PatchOptions{}, subresources...)
		return err
	}
}

func create[T any](client creator[T], object T) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := client.Create(ctx, object, metav1.CreateOptions{})
		return err
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
