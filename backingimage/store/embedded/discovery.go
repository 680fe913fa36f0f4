package embedded

import (
	"cmp"
	"net/http"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver"
	listers "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
)

// addDiscovery serves the two documents that clients ask for first. In a cluster they come from the aggregator in front
// of the server for custom resources; without them kubectl finds no group at all. New clients ask for the aggregated form,
// which the server keeps anyway; the classic form is made here.
func addDiscovery(crds *apiserver.CustomResourceDefinitions) {
	server := crds.GenericAPIServer
	groups := groupList{
		builtin: server.DiscoveryGroupManager,
		crds:    crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Lister(),
	}
	apis := aggregated.WrapAggregatedDiscoveryToHandler(groups, server.AggregatedDiscoveryGroupManager, nil)
	server.Handler.GoRestfulContainer.Add(apis.GenerateWebService("/apis", metav1.APIGroupList{}))
	core := aggregated.WrapAggregatedDiscoveryToHandler(http.HandlerFunc(serveNoCore), server.AggregatedLegacyDiscoveryGroupManager, nil)
	server.Handler.GoRestfulContainer.Add(core.GenerateWebService("/api", metav1.APIVersions{}))
}

// serveNoCore answers that there is no core group.
func serveNoCore(w http.ResponseWriter, r *http.Request) {
	write(w, r, &metav1.APIVersions{Versions: []string{}})
}

// groupList serves the list of API groups.
type groupList struct {
	builtin discovery.GroupLister
	crds    listers.CustomResourceDefinitionLister
}

func (g groupList) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	groups, err := g.builtin.Groups(r.Context(), r)
	if err == nil {
		var crds []*apiextensionsv1.CustomResourceDefinition
		crds, err = g.crds.List(labels.Everything())
		groups = append(groups, customGroups(crds)...)
	}
	if err != nil {
		responsewriters.ErrorNegotiated(err, apiserver.Codecs, schema.GroupVersion{}, w, r)
		return
	}
	write(w, r, &metav1.APIGroupList{Groups: groups})
}

func write(w http.ResponseWriter, r *http.Request, obj runtime.Object) {
	responsewriters.WriteObjectNegotiated(apiserver.Codecs, negotiation.DefaultEndpointRestrictions, schema.GroupVersion{}, w, r, http.StatusOK, obj, false)
}

// customGroups returns the groups of the definitions that are served, by name; a group's versions with the most mature first.
func customGroups(crds []*apiextensionsv1.CustomResourceDefinition) []metav1.APIGroup {
	versions := map[string][]string{}
	for _, crd := range crds {
		if !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		for _, v := range crd.Spec.Versions {
			if v.Served && !slices.Contains(versions[crd.Spec.Group], v.Name) {
				versions[crd.Spec.Group] = append(versions[crd.Spec.Group], v.Name)
			}
		}
	}
	groups := make([]metav1.APIGroup, 0, len(versions))
	for name, names := range versions {
		slices.SortFunc(names, func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) })
		groups = append(groups, group(name, names))
	}
	slices.SortFunc(groups, func(a, b metav1.APIGroup) int { return cmp.Compare(a.Name, b.Name) })
	return groups
}

func group(name string, versions []string) metav1.APIGroup {
	g := metav1.APIGroup{Name: name}
	for _, v := range versions {
		g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: name + "/" + v, Version: v})
	}
	g.PreferredVersion = g.Versions[0]
	return g
}
