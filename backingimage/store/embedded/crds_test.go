package embedded_test

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"plinth.dev/plinth/backingimage/store/embedded"
	"plinth.dev/plinth/deploy"
)

const imageCRD = "backingimages.plinth.dev"

func TestDefinitions(t *testing.T) {
	ctx := testContext(t)
	dir := tempDir(t)
	old := mustServeOld(t, dir)
	mustStop(t, old)

	s := mustServe(t, embedded.Options{Dir: dir})
	updated := mustCRD(t, s.RESTConfig())
	t.Run("of an older version are updated", func(t *testing.T) {
		schema := updated.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
		if _, ok := schema.Properties["prefetch"]; !ok {
			t.Error("the new field is missing")
		}
		if schema.Properties["checksum"].Pattern == "" {
			t.Error("the new pattern is missing")
		}
	})
	t.Run("that were updated are enforced at once", func(t *testing.T) {
		bad := image("bad")
		bad.Spec.Checksum = "xyz"
		if _, err := mustClient(t, s.RESTConfig()).Images.Create(ctx, bad, metav1.CreateOptions{}); err == nil {
			t.Error("the old schema is in force")
		}
	})
	mustStop(t, s)
	t.Run("that are equal are left alone", func(t *testing.T) {
		again := mustCRD(t, mustServe(t, embedded.Options{Dir: dir}).RESTConfig())
		if again.ResourceVersion != updated.ResourceVersion || again.Generation != updated.Generation {
			t.Errorf("it was written: resourceVersion %s → %s", updated.ResourceVersion, again.ResourceVersion)
		}
	})
}

// mustServeOld starts a server with definitions that lack a field and a pattern.
func mustServeOld(t testing.TB, dir string) *embedded.Server {
	t.Helper()
	const name = "crds/plinth.dev_backingimages.yaml"
	content, err := fs.ReadFile(deploy.CRDs, name)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	skip := false
	for _, line := range strings.Split(string(content), "\n") {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if skip = line == "              prefetch:" || skip && indent > 14; skip || strings.HasPrefix(line, "                pattern: ^$|") {
			continue
		}
		lines = append(lines, line)
	}
	s, err := embedded.New(embedded.Options{Dir: dir, CRDs: fstest.MapFS{name: {Data: []byte(strings.Join(lines, "\n"))}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustStop(t, s) })
	if p := mustCRD(t, s.RESTConfig()).Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"].Properties; p["prefetch"].Type != "" || p["checksum"].Pattern != "" {
		t.Fatal("the definition is not old")
	}
	return s
}

func mustCRD(t testing.TB, cfg *rest.Config) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	c, err := clientset.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	crd, err := c.ApiextensionsV1().CustomResourceDefinitions().Get(testContext(t), imageCRD, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return crd
}
