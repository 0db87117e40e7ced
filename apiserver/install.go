package apiserver

import (
	"fmt"
	"net/http"
	"time"

	restful "github.com/emicklei/go-restful/v3"
	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// watchTimeout is the shortest life of a watch that names none; upstream's half hour.
const watchTimeout = 30 * time.Minute

// installer turns groups of registries into routes and discovery documents.
type installer struct {
	codecs    serializer.CodecFactory
	container *restful.Container
	types     managedfields.TypeConverter
	authz     authorizer.Authorizer
	admit     admission.Interface
	maxBody   int64

	core, named aggregated.ResourceManager // aggregated discovery of /api and /apis
	address     discovery.Addresses
	equivalents runtime.EquivalentResourceRegistry
}

func newInstaller(codecs serializer.CodecFactory) *installer {
	container := restful.NewContainer()
	container.ServeMux = http.NewServeMux()
	container.Router(restful.CurlyRouter{}) // the only one that serves {path:*}
	// Panics are answered by the outermost filter.
	container.RecoverHandler(func(p any, _ http.ResponseWriter) { panic(p) })
	return &installer{
		codecs: codecs, container: container,
		core: aggregated.NewResourceManager("api"), named: aggregated.NewResourceManager("apis"),
		address:     discovery.DefaultAddresses{},
		equivalents: runtime.NewEquivalentResourceRegistry(),
	}
}

// install adds all groups and the discovery above them. Called once.
func (in *installer) install(groups []group) error {
	roots := discovery.NewRootAPIsHandler(in.address, in.codecs)
	for _, g := range groups {
		root, documents := "/apis", in.named
		if g.name == "" {
			root, documents = "/api", in.core
		}
		about := metav1.APIGroup{Name: g.name}
		for _, v := range g.versions {
			gv := schema.GroupVersion{Group: g.name, Version: v.name}
			found, err := in.installVersion(root, gv, g, v.resources)
			if err != nil {
				return err
			}
			documents.AddGroupVersion(g.name, apidiscoveryv2.APIVersionDiscovery{Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Version: v.name, Resources: found})
			about.Versions = append(about.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: v.name})
		}
		if g.name != "" {
			about.PreferredVersion = about.Versions[0]
			roots.AddGroup(about)
			in.container.Add(discovery.NewAPIGroupHandler(in.codecs, about).WebService())
		}
	}
	legacy := discovery.NewLegacyRootAPIHandler(in.address, in.codecs, "/api")
	in.container.Add(aggregated.WrapAggregatedDiscoveryToHandler(legacy, in.core, in.core).GenerateWebService("/api", metav1.APIVersions{}))
	in.container.Add(aggregated.WrapAggregatedDiscoveryToHandler(roots, in.named, in.named).GenerateWebService("/apis", metav1.APIGroupList{}))
	return nil
}

func (in *installer) installVersion(root string, gv schema.GroupVersion, g group, r resources) ([]apidiscoveryv2.APIResourceDiscovery, error) {
	scheme := legacyscheme.Scheme
	served := map[string][]string{}
	for _, v := range g.versions {
		for name := range v.resources {
			served[name] = append(served[name], schema.GroupVersion{Group: g.name, Version: v.name}.String())
		}
	}
	api := &endpoints.APIGroupVersion{
		Storage: map[string]rest.Storage(r), Root: root, GroupVersion: gv, AllServedVersionsByResource: served,
		OptionsExternalVersion: &schema.GroupVersion{Version: "v1"},
		Serializer:             in.codecs, ParameterCodec: legacyscheme.ParameterCodec,
		Typer: scheme, Creater: scheme, Convertor: scheme, ConvertabilityChecker: scheme, Defaulter: scheme,
		UnsafeConvertor: runtime.UnsafeObjectConvertor(scheme), Namer: runtime.Namer(meta.NewAccessor()),
		TypeConverter: in.types, EquivalentResourceRegistry: in.equivalents,
		Authorizer: in.authz, Admit: in.admit,
		MinRequestTimeout: watchTimeout, MaxRequestBodyBytes: in.maxBody,
	}
	found, _, err := api.InstallREST(in.container)
	if err != nil {
		return nil, fmt.Errorf("install %s: %w", gv, err)
	}
	return found, nil
}
