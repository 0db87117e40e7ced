package customresources

import (
	"net/http"
	"slices"

	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/endpoints/discovery"
)

// Upstream answers discovery from documents that a controller keeps behind an informer.
// Here they are made when asked for, of what is served at that moment: what was
// established on one peer is discovered on every other.

// Discovery brings the list of groups at /apis, which next answers, up to date before
// each answer.
func (a *API) Discovery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all, err := a.established(r.Context())
		if err != nil {
			a.fail(w, r, schema.GroupVersion{}, err)
			return
		}
		a.found.update(all)
		next.ServeHTTP(w, r)
	})
}

// serveDiscovery answers /apis/GROUP and /apis/GROUP/VERSION, given as the parts of the path.
func (a *API) serveDiscovery(w http.ResponseWriter, r *http.Request, path []string) {
	if len(path) != 2 && len(path) != 3 || path[0] != "apis" {
		notFound(w, r)
		return
	}
	all, err := a.established(r.Context())
	if err != nil {
		a.fail(w, r, schema.GroupVersion{}, err)
		return
	}
	all = slices.DeleteFunc(all, func(crd *definitionsv1.CustomResourceDefinition) bool { return crd.Spec.Group != path[1] })
	versions := versionsOf(all)
	switch {
	case len(versions) == 0:
		notFound(w, r)
	case len(path) == 2:
		discovery.NewAPIGroupHandler(extensions.Codecs, groupOf(path[1], versions)).ServeHTTP(w, r)
	case !slices.Contains(versions, path[2]):
		notFound(w, r)
	default:
		gv := schema.GroupVersion{Group: path[1], Version: path[2]}
		discovery.NewAPIVersionHandler(extensions.Codecs, gv, discovery.APIResourceListerFunc(func() []metav1.APIResource {
			return resourcesOf(gv, all)
		})).ServeHTTP(w, r)
	}
}

// versionsOf returns the versions that definitions of one group serve, the preferred first.
func versionsOf(all []*definitionsv1.CustomResourceDefinition) []string {
	var out []string
	for _, crd := range all {
		for _, v := range crd.Spec.Versions {
			if v.Served && !slices.Contains(out, v.Name) {
				out = append(out, v.Name)
			}
		}
	}
	slices.SortFunc(out, func(x, y string) int { return version.CompareKubeAwareVersionStrings(y, x) })
	return out
}

func groupOf(name string, versions []string) metav1.APIGroup {
	g := metav1.APIGroup{Name: name}
	for _, v := range versions {
		g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: name + "/" + v, Version: v})
	}
	g.PreferredVersion = g.Versions[0]
	return g
}
