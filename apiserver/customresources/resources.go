package customresources

import (
	"cmp"
	"slices"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/discovery"
)

// resource is what discovery says of one resource with its subresources. The two forms
// in which it is told, resourcesOf and aggregatedOf, are those of upstream's controller.
type resource struct {
	crd           *definitionsv1.CustomResourceDefinition
	verbs         metav1.Verbs
	status, scale bool
}

func subresourceVerbs() metav1.Verbs { return metav1.Verbs{"get", "patch", "update"} }

// inVersion returns what the definitions of a group serve in a version, by name.
func inVersion(gv schema.GroupVersion, all []*definitionsv1.CustomResourceDefinition) []resource {
	var out []resource
	for _, crd := range all {
		if crd.Spec.Group != gv.Group || !apihelpers.HasServedCRDVersion(crd, gv.Version) {
			continue
		}
		r := resource{crd: crd, verbs: metav1.Verbs{"delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"}}
		if apihelpers.IsCRDConditionTrue(crd, definitionsv1.Terminating) {
			r.verbs = metav1.Verbs{"delete", "deletecollection", "get", "list", "watch"}
		}
		for _, v := range crd.Spec.Versions {
			if v.Name == gv.Version && v.Subresources != nil {
				r.status, r.scale = v.Subresources.Status != nil, v.Subresources.Scale != nil
			}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(x, y resource) int {
		return cmp.Compare(x.crd.Status.AcceptedNames.Plural, y.crd.Status.AcceptedNames.Plural)
	})
	return out
}

// resourcesOf is the answer to /apis/GROUP/VERSION.
func resourcesOf(gv schema.GroupVersion, all []*definitionsv1.CustomResourceDefinition) []metav1.APIResource {
	out := []metav1.APIResource{}
	for _, r := range inVersion(gv, all) {
		names, namespaced := r.crd.Status.AcceptedNames, r.crd.Spec.Scope == definitionsv1.NamespaceScoped
		out = append(out, metav1.APIResource{
			Name: names.Plural, SingularName: names.Singular, Namespaced: namespaced, Kind: names.Kind, Verbs: r.verbs,
			ShortNames: names.ShortNames, Categories: names.Categories, StorageVersionHash: storageHash(r.crd),
		})
		if r.status {
			out = append(out, metav1.APIResource{Name: names.Plural + "/status", Namespaced: namespaced, Kind: names.Kind, Verbs: subresourceVerbs()})
		}
		if r.scale {
			out = append(out, metav1.APIResource{
				Group: autoscalingv1.GroupName, Version: "v1", Kind: "Scale", Name: names.Plural + "/scale", Namespaced: namespaced, Verbs: subresourceVerbs(),
			})
		}
	}
	return out
}

func storageHash(crd *definitionsv1.CustomResourceDefinition) string {
	for _, v := range crd.Spec.Versions {
		if v.Storage {
			return discovery.StorageVersionHash(crd.Spec.Group, v.Name, crd.Spec.Names.Kind)
		}
	}
	return ""
}

// aggregatedOf is a version's part of the aggregated answer to /apis.
func aggregatedOf(gv schema.GroupVersion, all []*definitionsv1.CustomResourceDefinition) apidiscoveryv2.APIVersionDiscovery {
	out := apidiscoveryv2.APIVersionDiscovery{Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Version: gv.Version}
	for _, r := range inVersion(gv, all) {
		names, scope := r.crd.Status.AcceptedNames, apidiscoveryv2.ScopeCluster
		if r.crd.Spec.Scope == definitionsv1.NamespaceScoped {
			scope = apidiscoveryv2.ScopeNamespace
		}
		kind := &metav1.GroupVersionKind{Group: gv.Group, Version: gv.Version, Kind: names.Kind}
		one := apidiscoveryv2.APIResourceDiscovery{
			Resource: names.Plural, SingularResource: names.Singular, Scope: scope, ResponseKind: kind, Verbs: r.verbs,
			ShortNames: names.ShortNames, Categories: names.Categories,
		}
		if r.status {
			one.Subresources = append(one.Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: "status", ResponseKind: kind, Verbs: subresourceVerbs()})
		}
		if r.scale {
			one.Subresources = append(one.Subresources, apidiscoveryv2.APISubresourceDiscovery{
				Subresource: "scale", ResponseKind: &metav1.GroupVersionKind{Group: autoscalingv1.GroupName, Version: "v1", Kind: "Scale"}, Verbs: subresourceVerbs(),
			})
		}
		out.Resources = append(out.Resources, one)
	}
	return out
}
