package apiserver

import (
	"context"
	"net/http"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/rundigitalplatform/rookery/apiserver/customresources"
)

// definitionsGroup builds apiextensions.k8s.io, which has a scheme of its own.
func (s *Server) definitionsGroup() (group, error) {
	registries, err := customresources.Definitions(restOptions{store: s.cfg.Store, scheme: customresources.Scheme()})
	if err != nil {
		return group{}, err
	}
	return group{customresources.Group, []version{{customresources.Version, resources(registries)}}}, nil
}

// customResources makes what serves the kinds that users define. It does nothing until
// the first is defined.
func (s *Server) customResources(in *installer) *customresources.API {
	return customresources.New(customresources.Config{
		Store: s.cfg.Store, Logger: s.cfg.Logger, Life: s.life, Client: s.ClientConfig("system:apiserver", "system:masters"),
		Admission: in.admit, Authorizer: in.authz, Services: serviceResolver{s.client},
		Groups: in.listed.defined, Aggregated: in.named, BuiltIn: in.builtIn.Has, Register: s.register, KubernetesVersion: s.cfg.KubernetesVersion,
		RequestTimeout: s.cfg.RequestTimeout, WatchTimeout: watchTimeout, MaxBodyBytes: s.cfg.MaxBodyBytes,
	})
}

// register is [aggregation.Aggregator.Register].
func (s *Server) register(ctx context.Context, defined []schema.GroupVersion) error {
	return s.extensions.Register(ctx, defined)
}

// RunDefinitions runs the controllers of CustomResourceDefinitions until ctx ends: names,
// established, schemas, and the deletion of a definition with its objects. The leader calls it,
// with a context that ends with its term. It does nothing until there is a definition.
func (s *Server) RunDefinitions(ctx context.Context) error { return s.custom.RunControllers(ctx) }

// route sends requests for the core group, and those for the built-in groups and the list of
// groups under /apis, where they are installed. others takes the groups that are not built
// in; who serves more of them wraps it and takes what is its own first.
func (in *installer) route(root, others http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, isNamed := strings.CutPrefix(r.URL.Path, "/apis")
		name, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		switch {
		case isNamed && name == "":
			root.ServeHTTP(w, r)
		case !isNamed || in.builtIn.Has(name):
			in.container.ServeHTTP(w, r)
		default:
			others.ServeHTTP(w, r)
		}
	})
}
