package embedded_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/store/embedded"
)

// The rules of api/v1alpha1 as the API server applies them, with the messages that users get.
func TestKinds(t *testing.T) {
	s := mustServe(t, embedded.Options{Dir: tempDir(t)})
	c := mustClient(t, s.RESTConfig())
	t.Run("what is not served is not what is not there", func(t *testing.T) { testUnserved(t, c, s.RESTConfig()) })
	t.Run("create", func(t *testing.T) { testCreate(t, c) })
	t.Run("change", func(t *testing.T) { testChange(t, c) })
	t.Run("defaults are filled in", func(t *testing.T) { testDefaults(t, c) })
	t.Run("status", func(t *testing.T) { testStatus(t, c) })
	t.Run("field selectors", func(t *testing.T) { testFieldSelectors(t, c) })
	t.Run("an agent's cache has what is its own, and it can ask for all nodes", func(t *testing.T) { testAgentsCache(t, c, s.RESTConfig()) })
	t.Run("the cache has no managed fields, and what is written from it keeps them", func(t *testing.T) { testManagedFields(t, c, s.RESTConfig()) })
}

func testAgentsCache(t *testing.T, c *store.Client, cfg *rest.Config) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	makeNode := func(name string) {
		_, err := c.Nodes.Create(ctx, &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err == nil {
			_, err = c.Disks.Create(ctx, &v1alpha1.Disk{ObjectMeta: metav1.ObjectMeta{Name: "disk-of-" + name}, Spec: v1alpha1.DiskSpec{NodeName: name}}, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	makeNode("mine")
	makeNode("others")
	s, err := store.New(cfg, store.Options{NodeName: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	if err := s.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	if nodes, disks := s.Nodes.List(), s.Disks.List(); len(nodes) != 1 || nodes[0].Name != "mine" || len(disks) != 1 || disks[0].Name != "disk-of-mine" {
		t.Errorf("the cache has %d nodes and %d disks", len(nodes), len(disks))
	}
	named := func(nodes []*v1alpha1.StorageNode, err error) (names []string) {
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		return names
	}
	if got := named(s.AllNodes(ctx)); !slices.Contains(got, "others") {
		t.Errorf("all nodes are %v", got)
	}
	makeNode("new")
	if got := named(s.FreshNodes(ctx)); !slices.Contains(got, "new") {
		t.Errorf("fresh nodes are %v", got)
	}
	if got := named(s.AllNodes(ctx)); !slices.Contains(got, "new") {
		t.Errorf("then all nodes are %v", got)
	}
}

func testManagedFields(t *testing.T, c *store.Client, cfg *rest.Config) {
	s, err := store.New(cfg, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	if err := s.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Nodes.Create(ctx, &v1alpha1.StorageNode{ObjectMeta: metav1.ObjectMeta{Name: "managed"}}, metav1.CreateOptions{FieldManager: "who-made-it"}); err != nil {
		t.Fatal(err)
	}
	err = s.Nodes.Wait(ctx, "managed", func(n *v1alpha1.StorageNode) (bool, error) {
		return n != nil && len(n.ManagedFields) == 0, nil
	})
	if err == nil {
		_, err = s.Nodes.Modify(ctx, "managed", func(n *v1alpha1.StorageNode) { n.Spec.Tags = []string{"changed"} })
	}
	if err != nil {
		t.Fatal(err)
	}
	live, err := s.Nodes.Live(ctx, "managed")
	if err != nil || !slices.ContainsFunc(live.ManagedFields, func(f metav1.ManagedFieldsEntry) bool { return f.Manager == "who-made-it" }) {
		t.Errorf("got %+v, %v", live.ManagedFields, err)
	}
}

// A server that starts answers 404 for kinds that it does not serve yet; whoever waits for an object must not take that for
// its end.
func testUnserved(t *testing.T, c *store.Client, cfg *rest.Config) {
	_, err := c.Images.Get(t.Context(), "none", metav1.GetOptions{})
	if err := store.Classify("get", "image", "none", err); !backingimage.Is(err, backingimage.NotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.APIPath, cfg.GroupVersion = "/apis", &schema.GroupVersion{Group: v1alpha1.GroupVersion.Group, Version: "v1"}
	cfg.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	unserved, err := rest.RESTClientFor(cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = unserved.Get().Resource("backingimages").Name("none").Do(t.Context()).Error()
	if err := store.Classify("get", "image", "none", err); !backingimage.Is(err, backingimage.NotReady) {
		t.Errorf("a version that is not served: %v", err)
	}
}

func url(u v1alpha1.SourceParameter) func(*v1alpha1.BackingImageSpec) {
	return func(s *v1alpha1.BackingImageSpec) {
		s.SourceParameters = map[string]v1alpha1.SourceParameter{v1alpha1.ParameterURL: u}
	}
}

func source(t v1alpha1.SourceType, parameters map[string]v1alpha1.SourceParameter) func(*v1alpha1.BackingImageSpec) {
	return func(s *v1alpha1.BackingImageSpec) { s.SourceType, s.SourceParameters = t, parameters }
}

func checksum(sum string) func(*v1alpha1.BackingImageSpec) {
	return func(s *v1alpha1.BackingImageSpec) { s.Checksum = sum }
}

const needsURL = "sourceParameters.url: a download needs an http://, https://, s3:// or oci:// URL with a host, a bucket or a registry"

func testCreate(t *testing.T, c *store.Client) {
	hex := strings.Repeat("aB", 32)
	for name, test := range map[string]struct {
		change  func(*v1alpha1.BackingImageSpec)
		message string // "" = accepted
	}{
		"no parameters":                   {source("download", nil), needsURL},
		"no URL":                          {source("download", map[string]v1alpha1.SourceParameter{"a": "b"}), needsURL},
		"an empty URL":                    {url(""), needsURL},
		"an ftp URL":                      {url("ftp://example.com/x"), needsURL},
		"a file URL":                      {url("file:///etc/shadow"), needsURL},
		"a URL without scheme":            {url("//example.com/x"), needsURL},
		"a URL without host":              {url("http:///x"), needsURL},
		"a path":                          {url("/x"), needsURL},
		"a scheme in the wrong place":     {url(" http://example.com/x"), needsURL},
		"a password in the URL":           {url("https://me:secret@example.com/x"), "a user name or password in the URL would be readable by everyone who can read the image; put it into a secret and name that with sourceParameters.secret"},
		"a user in the URL":               {url("https://me@example.com/x"), "a user name or password in the URL"},
		"a URL of 4,097 characters":       {url("http://e/" + v1alpha1.SourceParameter(strings.Repeat("x", 4088))), "may not be more than 4096"},
		"an at sign in the path":          {url("https://example.com/me@home"), ""},
		"an http URL with a port":         {url("http://example.com:8080/x?y=z#f"), ""},
		"an object":                       {url("s3://bucket/key"), ""},
		"an object with an at sign":       {url("s3://bucket/me@home"), ""},
		"a key in an object's URL":        {url("s3://key:secret@bucket/key"), "a user name or password in the URL"},
		"a tag and a digest":              {url("oci://registry.example.com:5000/disks/fedora:42@sha256:" + v1alpha1.SourceParameter(hex)), ""},
		"a login in a registry's URL":     {url("oci://me:secret@registry.example.com/x:1"), "a user name or password in the URL"},
		"an IPv6 host":                    {url("http://[2001:db8::1]/x"), ""},
		"an upper-case scheme":            {url("HTTPS://example.com/x"), ""},
		"an unknown source type":          {source("fetch", nil), `Unsupported value: "fetch"`},
		"no source type":                  {source("", nil), `Unsupported value: ""`},
		"an upload":                       {source("upload", nil), ""},
		"an export without volume":        {source("export-from-volume", nil), "sourceParameters.volume-name: export-from-volume needs the volume's name"},
		"a clone without image":           {source("clone", nil), "sourceParameters.backing-image: clone needs the name of the image to clone"},
		"an export as raw":                {source("export-from-volume", map[string]v1alpha1.SourceParameter{"volume-name": "v", "export-type": "raw"}), ""},
		"an export as qcow2":              {source("export-from-volume", map[string]v1alpha1.SourceParameter{"volume-name": "v", "export-type": "qcow2"}), ""},
		"an export as vmdk":               {source("export-from-volume", map[string]v1alpha1.SourceParameter{"volume-name": "v", "export-type": "vmdk"}), "sourceParameters.export-type: an export yields raw or qcow2"},
		"a clone that ignores encryption": {source("clone", map[string]v1alpha1.SourceParameter{"backing-image": "b", "encryption": "ignore"}), ""},
		"a clone that is to be encrypted": {source("clone", map[string]v1alpha1.SourceParameter{"backing-image": "b", "encryption": "encrypt"}), "images are not encrypted in this version"},
		"an upload with parameters":       {source("upload", map[string]v1alpha1.SourceParameter{"url": "https://example.com/x"}), "sourceParameters: an upload has none"},
		"a restore without backup":        {source("restore", nil), "sourceParameters.backup-url: restore needs the backup's URL"},
		"a restore from nowhere":          {source("restore", map[string]v1alpha1.SourceParameter{"backup-url": "s3://b/?backup=x", "restore-from": "memory"}), "sourceParameters.restore-from: an image is restored from its backup, or from its source"},
		"a restore from the source":       {source("restore", map[string]v1alpha1.SourceParameter{"backup-url": "s3://b/?backup=x", "restore-from": "source"}), ""},
		"a bare SHA-256":                  {checksum(hex), ""},
		"a bare SHA-512":                  {checksum(hex + hex), ""},
		"a SHA-256 with a prefix":         {checksum("SHA256:" + hex), ""},
		"a SHA-512 with a prefix":         {checksum("sha512:" + hex + hex), ""},
		"a SHA-1":                         {checksum(strings.Repeat("a", 40)), "spec.checksum"},
		"a SHA-512 called SHA-256":        {checksum("sha256:" + hex + hex), "spec.checksum"},
		"a checksum that is no hex":       {checksum(strings.Repeat("x", 64)), "spec.checksum"},
		"a negative number of copies":     {func(s *v1alpha1.BackingImageSpec) { s.MinNumberOfCopies = -1 }, "should be greater than or equal to 1"},
		"101 copies":                      {func(s *v1alpha1.BackingImageSpec) { s.MinNumberOfCopies = 101 }, "should be less than or equal to 100"},
		"the second data engine":          {func(s *v1alpha1.BackingImageSpec) { s.DataEngine = "v2" }, `Unsupported value: "v2"`},
		"the first data engine":           {func(s *v1alpha1.BackingImageSpec) { s.DataEngine = "v1" }, ""},
		"seventeen source parameters":     {seventeen, "must have at most 16 items"},
		"selectors and wanted disks": {func(s *v1alpha1.BackingImageSpec) {
			s.NodeSelector, s.DiskFileSpecMap = []string{"a"}, map[string]v1alpha1.DiskFileSpec{"u": {EvictionRequested: true}}
		}, ""},
	} {
		verb := "is accepted"
		if test.message != "" {
			verb = "is refused"
		}
		t.Run(name+" "+verb, func(t *testing.T) {
			i := image("new")
			test.change(&i.Spec)
			_, err := c.Images.Create(testContext(t), i, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			mustRefuse(t, err, test.message)
		})
	}
	for _, name := range []string{"..", "../etc/passwd", "a/b", "Fedora", "ä", "a\u202eb", "a b", strings.Repeat("a", 300)} {
		t.Run("the name "+name[:min(len(name), 20)]+" is refused", func(t *testing.T) {
			_, err := c.Images.Create(testContext(t), image(name), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			mustRefuse(t, err, "metadata.name")
		})
	}
	t.Run("no copies at all is refused", func(t *testing.T) {
		// The Go type leaves a zero out, so that it gets the default; YAML can say it.
		body := `{"apiVersion":"plinth.dev/v1alpha1","kind":"BackingImage","metadata":{"name":"zero"},"spec":{"sourceType":"upload","minNumberOfCopies":0}}`
		err := c.Images.GetClient().Post().Resource("backingimages").Body([]byte(body)).SetHeader("Content-Type", "application/json").Do(testContext(t)).Error()
		mustRefuse(t, err, "should be greater than or equal to 1")
	})
}

func seventeen(s *v1alpha1.BackingImageSpec) {
	for n := range 16 {
		s.SourceParameters[fmt.Sprint(n)] = "x"
	}
}

// mustRefuse wants an Invalid with that message, or success when it is empty.
func mustRefuse(t testing.TB, err error, message string) {
	t.Helper()
	if message == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), message) {
		t.Errorf("got  %v\nwant … %s", err, message)
	}
}

func testDefaults(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	i, err := c.Images.Create(ctx, image("defaults"), metav1.CreateOptions{})
	if err != nil || i.Spec.MinNumberOfCopies != 1 {
		t.Errorf("minNumberOfCopies: got %d, %v", i.Spec.MinNumberOfCopies, err)
	}
	d := &v1alpha1.Disk{}
	d.Name = "defaults"
	d, err = c.Disks.Create(ctx, d, metav1.CreateOptions{})
	if err != nil || d.Spec.Type != "reflink" || d.Spec.AllowScheduling == nil || !*d.Spec.AllowScheduling {
		t.Errorf("disk: got %+v, %v", d.Spec, err)
	}
	n := &v1alpha1.StorageNode{}
	n.Name = "defaults"
	n, err = c.Nodes.Create(ctx, n, metav1.CreateOptions{})
	if err != nil || n.Spec.AllowScheduling == nil || !*n.Spec.AllowScheduling {
		t.Errorf("node: got %+v, %v", n.Spec, err)
	}
}

func testStatus(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	made := image("status")
	made.Status.State = v1alpha1.CopyReady
	i, err := c.Images.Create(ctx, made, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("is not set by create", func(t *testing.T) {
		if i.Status.State != "" {
			t.Errorf("got %s", i.Status.State)
		}
	})
	t.Run("is written by UpdateStatus, which leaves spec and generation alone", func(t *testing.T) {
		i.Status.State = v1alpha1.CopyInProgress
		i.Spec.MinNumberOfCopies = 9
		got, err := c.Images.UpdateStatus(ctx, i, metav1.UpdateOptions{})
		if err != nil || got.Status.State != v1alpha1.CopyInProgress || got.Spec.MinNumberOfCopies != 1 || got.Generation != 1 {
			t.Fatalf("got %+v, %v", got, err)
		}
		i = got
	})
	t.Run("is left alone by Update, which raises the generation", func(t *testing.T) {
		i.Status.State = v1alpha1.CopyFailed
		i.Spec.MinNumberOfCopies = 2
		got, err := c.Images.Update(ctx, i, metav1.UpdateOptions{})
		if err != nil || got.Status.State != v1alpha1.CopyInProgress || got.Spec.MinNumberOfCopies != 2 || got.Generation != 2 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	t.Run("written from a stale object is a conflict", func(t *testing.T) {
		_, err := c.Images.UpdateStatus(ctx, i, metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			t.Errorf("got %v", err)
		}
	})
}

func testFieldSelectors(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	for n := range 4 {
		copied := &v1alpha1.BackingImageCopy{Spec: v1alpha1.BackingImageCopySpec{
			Image: "fields", ImageUID: "u", DiskUUID: fmt.Sprintf("disk-%d", n), NodeName: fmt.Sprintf("node-%d", n%2),
		}}
		copied.Name = fmt.Sprintf("fields-%d", n)
		if _, err := c.Copies.Create(ctx, copied, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for selector, want := range map[string]int{
		"spec.nodeName=node-1": 2, "spec.image=fields": 4, "spec.diskUUID=disk-3": 1, "spec.nodeName=node-1,spec.diskUUID=disk-0": 0,
	} {
		list, err := c.Copies.List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil || len(list.Items) != want {
			t.Errorf("%s: got %d objects, %v; want %d", selector, len(list.Items), err, want)
		}
	}
	t.Run("on other fields are refused", func(t *testing.T) {
		if _, err := c.Copies.List(ctx, metav1.ListOptions{FieldSelector: "spec.origin=true"}); !apierrors.IsBadRequest(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("narrow a watch", func(t *testing.T) { testSelectedWatch(t, c) })
}

func testSelectedWatch(t *testing.T, c *store.Client) {
	ctx := testContext(t)
	w, err := c.Copies.Watch(ctx, metav1.ListOptions{FieldSelector: "spec.diskUUID=watched"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, disk := range []string{"other", "watched"} {
		copied := &v1alpha1.BackingImageCopy{Spec: v1alpha1.BackingImageCopySpec{Image: "i", ImageUID: "u", DiskUUID: disk}}
		copied.Name = "watch-" + disk
		if _, err := c.Copies.Create(ctx, copied, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case event := <-w.ResultChan():
		if got, ok := event.Object.(*v1alpha1.BackingImageCopy); !ok || got.Spec.DiskUUID != "watched" {
			t.Errorf("got %v", event)
		}
	case <-ctx.Done():
		t.Error("no event")
	}
}
