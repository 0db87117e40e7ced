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
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/rundigitalplatform/rookery/apiserver/aggregation"
	"github.com/rundigitalplatform/rookery/apiserver/groups"
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
	schemes   map[string]*runtime.Scheme // of groups whose kinds are not in Kubernetes' own scheme

	core, named aggregated.ResourceManager // aggregated discovery of /api and /apis
	roots       discovery.GroupManager     // serves the groups of /apis in the older form
	listed      listed                     // which those are
	builtIn     sets.Set[string]           // names of the groups that were installed
	address     discovery.Addresses
	equivalents runtime.EquivalentResourceRegistry
}

// listed are the parts of the list of groups, those of which versions are preferred first.
type listed struct{ builtIn, defined, extended *groups.Part }

func newInstaller(codecs serializer.CodecFactory) *installer {
	container := restful.NewContainer()
	address := discovery.DefaultAddresses{}
	roots := discovery.NewRootAPIsHandler(address, codecs)
	list := groups.New(roots)
	container.ServeMux = http.NewServeMux()
	container.Router(restful.CurlyRouter{}) // the only one that serves {path:*}
	// Panics are answered by the outermost filter.
	container.RecoverHandler(func(p any, _ http.ResponseWriter) { panic(p) })
	return &installer{
		codecs: codecs, container: container,
		core: aggregated.NewResourceManager("api"), named: aggregated.NewResourceManager("apis"),
		address: address, roots: roots, listed: listed{list.Part(), list.Part(), list.Part()},
		equivalents: runtime.NewEquivalentResourceRegistry(),
		schemes:     map[string]*runtime.Scheme{},
		builtIn:     sets.New[string](),
	}
}

// kinds returns what knows the kinds of a group.
func (in *installer) kinds(group string) (*runtime.Scheme, runtime.NegotiatedSerializer, runtime.ParameterCodec) {
	if scheme := in.schemes[group]; scheme != nil {
		return scheme, serializer.NewCodecFactory(scheme), runtime.NewParameterCodec(scheme)
	}
	return legacyscheme.Scheme, in.codecs, legacyscheme.ParameterCodec
}

// install adds all groups and the discovery above them. Called once.
func (in *installer) install(all []group) error {
	for _, g := range all {
		root, documents := "/apis", in.named
		if g.name == "" {
			root, documents = "/api", in.core
		}
		in.builtIn.Insert(g.name)
		about := metav1.APIGroup{Name: g.name}
		var versions []string
		for _, v := range g.versions {
			gv := schema.GroupVersion{Group: g.name, Version: v.name}
			found, err := in.installVersion(root, gv, g, v.resources)
			if err != nil {
				return err
			}
			documents.AddGroupVersion(g.name, apidiscoveryv2.APIVersionDiscovery{Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Version: v.name, Resources: found})
			// `kubectl get deployments` is of apps, whatever users define that has that name.
			documents.SetGroupVersionPriority(metav1.GroupVersion(gv), aggregation.BuiltinPriority, aggregation.BuiltinVersionPriority)
			about.Versions = append(about.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: v.name})
			versions = append(versions, v.name)
		}
		if g.name != "" {
			about.PreferredVersion = about.Versions[0]
			in.listed.builtIn.Set(g.name, versions...)
			in.container.Add(discovery.NewAPIGroupHandler(in.codecs, about).WebService())
		}
	}
	legacy := discovery.NewLegacyRootAPIHandler(in.address, in.codecs, "/api")
	in.container.Add(aggregated.WrapAggregatedDiscoveryToHandler(legacy, in.core, in.core).GenerateWebService("/api", metav1.APIVersions{}))
	in.container.Add(aggregated.WrapAggregatedDiscoveryToHandler(in.roots, in.named, in.named).GenerateWebService("/apis", metav1.APIGroupList{}))
	return nil
}

func (in *installer) installVersion(root string, gv schema.GroupVersion, g group, r resources) ([]apidiscoveryv2.APIResourceDiscovery, error) {
	scheme, codecs, parameters := in.kinds(g.name)
	served := map[string][]string{}
	for _, v := range g.versions {
		for name := range v.resources {
			served[name] = append(served[name], schema.GroupVersion{Group: g.name, Version: v.name}.String())
		}
	}
	api := &endpoints.APIGroupVersion{
		Storage: map[string]rest.Storage(r), Root: root, GroupVersion: gv, AllServedVersionsByResource: served,
		OptionsExternalVersion: &schema.GroupVersion{Version: "v1"},
		Serializer:             codecs, ParameterCodec: parameters,
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
