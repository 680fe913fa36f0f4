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
		if err := s.install(ctx, definitions, crd); err != nil {
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
// others added included. One that somebody is deleting is created anew when it is gone.
func (s *Server) install(ctx context.Context, definitions typed.CustomResourceDefinitionInterface, want *definition) error {
	return s.poll(ctx, func() (bool, error) {
		have, err := definitions.Get(ctx, want.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = definitions.Create(ctx, want, metav1.CreateOptions{})
			return err == nil, err
		}
		if err != nil || have.DeletionTimestamp != nil {
			return false, err
		}
		next := have.DeepCopy()
		next.Spec = want.Spec
		next.Labels = merged(have.Labels, want.Labels)
		next.Annotations = merged(have.Annotations, want.Annotations)
		if apiequality.Semantic.DeepEqual(have, next) {
			return true, nil
		}
		_, err = definitions.Update(ctx, next, metav1.UpdateOptions{})
		return err == nil, ignoreConflict(err)
	})
}

func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
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

// establish waits until the API server has accepted the definition's names, then declares it established itself, some time
// ago. There are two reasons not to wait for the controller whose work that is: it overlooks a definition whose names were
// accepted by a process that was killed next; and there are no other API servers here that need time to learn of it.
func (s *Server) establish(ctx context.Context, definitions typed.CustomResourceDefinitionInterface, name string) error {
	if err := s.waitCRD(ctx, name, namesAccepted); err != nil {
		return err
	}
	err := s.poll(ctx, func() (bool, error) {
		crd, err := definitions.Get(ctx, name, metav1.GetOptions{})
		if err != nil || isSettled(crd, time.Now()) {
			return err == nil, err
		}
		settle(crd, time.Now())
		_, err = definitions.UpdateStatus(ctx, crd, metav1.UpdateOptions{})
		return err == nil, ignoreConflict(err)
	})
	if err != nil {
		return fmt.Errorf("write its status: %w", err)
	}
	return s.waitCRD(ctx, name, func(crd *definition) (bool, error) { return isSettled(crd, time.Now()), nil })
}

// namesAccepted fails when they never will be: they belong to another definition.
func namesAccepted(crd *definition) (bool, error) {
	c := apihelpers.FindCRDCondition(crd, apiextensionsv1.NamesAccepted)
	if c != nil && c.Status == apiextensionsv1.ConditionFalse {
		return false, fmt.Errorf("its names are taken: %s", c.Message)
	}
	return c != nil && c.Status == apiextensionsv1.ConditionTrue, nil
}

func settle(crd *definition, now time.Time) {
	apihelpers.SetCRDCondition(crd, apiextensionsv1.CustomResourceDefinitionCondition{
		Type:    apiextensionsv1.Established,
		Status:  apiextensionsv1.ConditionTrue,
		Reason:  "InitialNamesAccepted",
		Message: "the initial names have been accepted",
	})
	apihelpers.FindCRDCondition(crd, apiextensionsv1.Established).LastTransitionTime = metav1.NewTime(now.Add(-2 * holdBack))
}

func isSettled(crd *definition, now time.Time) bool {
	c := apihelpers.FindCRDCondition(crd, apiextensionsv1.Established)
	return c != nil && c.Status == apiextensionsv1.ConditionTrue && now.Sub(c.LastTransitionTime.Time) > holdBack
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
