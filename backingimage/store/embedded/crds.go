package embedded

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	typed "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/yaml"
)

type definition = apiextensionsv1.CustomResourceDefinition

// readCRDs returns the definitions in the *.yaml files.
func readCRDs(files fs.FS) ([]*definition, error) {
	if files == nil {
		return nil, nil
	}
	var crds []*definition
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path.Ext(name) != ".yaml" {
			return err
		}
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		found, err := parseCRDs(content)
		if err != nil {
			return invalid("CRDs: file %s: %w", name, err)
		}
		crds = append(crds, found...)
		return nil
	})
	return crds, err
}

func parseCRDs(content []byte) ([]*definition, error) {
	var crds []*definition
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return crds, nil
		}
		if err != nil {
			return nil, err
		}
		crd := &definition{}
		if err := yaml.UnmarshalStrict(document, crd); err != nil {
			return nil, err
		}
		if crd.Kind == "" && crd.Name == "" { // a document of comments
			continue
		}
		if crd.Kind != "CustomResourceDefinition" || crd.APIVersion != apiextensionsv1.SchemeGroupVersion.String() {
			return nil, fmt.Errorf("it has a %s of %s; only CustomResourceDefinitions of %s can be installed", crd.Kind, crd.APIVersion, apiextensionsv1.SchemeGroupVersion)
		}
		apiextensionsv1.SetObjectDefaults_CustomResourceDefinition(crd)
		crds = append(crds, crd)
	}
}

// installCRDs returns when all definitions are as wanted, established, and visible to clients.
func (s *Server) installCRDs(ctx context.Context) error {
	if len(s.crds) == 0 {
		return nil
	}
	clients, err := clientset.NewForConfig(s.RESTConfig())
	if err != nil {
		return err
	}
	definitions := clients.ApiextensionsV1().CustomResourceDefinitions()
	for _, crd := range s.crds {
		if err := install(ctx, definitions, crd); err != nil {
			return fmt.Errorf("install %s: %w", crd.Name, err)
		}
	}
	for _, crd := range s.crds {
		if err := s.establish(ctx, definitions, crd.Name); err != nil {
			return fmt.Errorf("establish %s: %w", crd.Name, err)
		}
	}
	return s.waitAnswers(ctx, clients.Discovery())
}

// install creates a definition, or updates one that differs. One that is equal is left alone, labels and annotations that
// others added included.
func install(ctx context.Context, definitions typed.CustomResourceDefinitionInterface, want *definition) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		have, err := definitions.Get(ctx, want.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = definitions.Create(ctx, want, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		next := have.DeepCopy()
		next.Spec = want.Spec
		next.Labels = merged(have.Labels, want.Labels)
		next.Annotations = merged(have.Annotations, want.Annotations)
		if apiequality.Semantic.DeepEqual(have, next) {
			return nil
		}
		_, err = definitions.Update(ctx, next, metav1.UpdateOptions{})
		return err
	})
}

func merged(have, want map[string]string) map[string]string {
	if len(want) == 0 {
		return have
	}
	all := maps.Clone(have)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, want)
	return all
}

// holdBack is how long the API server delays the first objects of a new definition, so that other API servers in front of
// the same etcd can learn of it.
const holdBack = 2 * time.Second

// establish waits until the API server serves the definition. There are no other API servers here, so the definition is
// then made to look older than holdBack; else the first create of a new data directory took two seconds.
func (s *Server) establish(ctx context.Context, definitions typed.CustomResourceDefinitionInterface, name string) error {
	if err := s.waitCRD(ctx, name, isServed); err != nil {
		return err
	}
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		crd, err := definitions.Get(ctx, name, metav1.GetOptions{})
		if err != nil || isSettled(crd, time.Now()) {
			return err
		}
		established := apihelpers.FindCRDCondition(crd, apiextensionsv1.Established)
		established.LastTransitionTime = metav1.NewTime(established.LastTransitionTime.Add(-2 * holdBack))
		_, err = definitions.UpdateStatus(ctx, crd, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("settle its age: %w", err)
	}
	return s.waitCRD(ctx, name, func(crd *definition) (bool, error) { return isSettled(crd, time.Now()), nil })
}

// isServed fails when the definition can never be served: its names belong to another one.
func isServed(crd *definition) (bool, error) {
	if c := apihelpers.FindCRDCondition(crd, apiextensionsv1.NamesAccepted); c != nil && c.Status == apiextensionsv1.ConditionFalse {
		return false, fmt.Errorf("its names are taken: %s", c.Message)
	}
	return apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established), nil
}

func isSettled(crd *definition, now time.Time) bool {
	c := apihelpers.FindCRDCondition(crd, apiextensionsv1.Established)
	return c != nil && now.Sub(c.LastTransitionTime.Time) > holdBack
}

// waitCRD polls the API server's own cache, which decides what is served.
func (s *Server) waitCRD(ctx context.Context, name string, until func(*definition) (bool, error)) error {
	lister := s.api.Informers.Apiextensions().V1().CustomResourceDefinitions().Lister()
	return s.poll(ctx, func() (bool, error) {
		crd, err := lister.Get(name)
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return until(crd)
	})
}

// waitAnswers waits until a client that asks what there is gets all kinds and their schemas, and until each kind answers:
// the API server opens a kind's storage at the first request, which it turns away ("storage is initializing, try again in a
// second").
func (s *Server) waitAnswers(ctx context.Context, client discovery.DiscoveryInterface) error {
	for _, crd := range s.crds {
		for _, v := range crd.Spec.Versions {
			if !v.Served {
				continue
			}
			gvr := schema.GroupVersionResource{Group: crd.Spec.Group, Version: v.Name, Resource: crd.Spec.Names.Plural}
			if err := s.poll(ctx, func() (bool, error) { return isDiscovered(client, gvr) && answers(ctx, client, gvr), nil }); err != nil {
				return fmt.Errorf("wait for %s: %w", gvr, err)
			}
		}
	}
	return nil
}

func isDiscovered(client discovery.DiscoveryInterface, gvr schema.GroupVersionResource) bool {
	list, err := client.ServerResourcesForGroupVersion(gvr.GroupVersion().String())
	if err != nil || !slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == gvr.Resource }) {
		return false
	}
	schemas, err := client.OpenAPIV3().Paths()
	return err == nil && schemas["apis/"+gvr.GroupVersion().String()] != nil
}

func answers(ctx context.Context, client discovery.DiscoveryInterface, gvr schema.GroupVersionResource) bool {
	return client.RESTClient().Get().AbsPath("/apis", gvr.Group, gvr.Version, gvr.Resource).
		Param("limit", "1").MaxRetries(0).Do(ctx).Error() == nil
}

// pollEvery is short because each wait here is for something in this process.
const pollEvery = 5 * time.Millisecond

// poll asks until it is done, fails, the server died or ctx ends.
func (s *Server) poll(ctx context.Context, done func() (bool, error)) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-s.ended:
			return fmt.Errorf("it stopped: %w", s.cause)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
