package apiserver

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	registry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	api "k8s.io/kubernetes/pkg/apis/core"
	service "k8s.io/kubernetes/pkg/registry/core/service/storage"
)

// allocateFor makes a registry tell its allocator of addresses for which Service
// it allocates. The stock registry tells nobody but upstream's own allocator, so
// the beginning of a write is done by a registry made for this one Service. That
// takes 0.4 ms and 50 kB; a second write, to say it afterwards, would take longer.
func allocateFor(r *service.REST, registryFor func(namespace, name string) (*service.REST, error)) {
	r.Store.BeginCreate = func(ctx context.Context, obj runtime.Object, opts *metav1.CreateOptions) (registry.FinishFunc, error) {
		own, err := registryFor(of(obj))
		if err != nil {
			return nil, err
		}
		return own.Store.BeginCreate(ctx, obj, opts)
	}
	r.Store.BeginUpdate = func(ctx context.Context, obj, old runtime.Object, opts *metav1.UpdateOptions) (registry.FinishFunc, error) {
		own, err := registryFor(of(obj))
		if err != nil {
			return nil, err
		}
		return own.Store.BeginUpdate(ctx, obj, old, opts)
	}
}

func of(obj runtime.Object) (namespace, name string) {
	svc := obj.(*api.Service) // of nothing else is this the registry
	return svc.Namespace, svc.Name
}

// services asks for quorum before a Service is created. The stock registry
// allocates an address first and reports every failure of that as a mistake in
// the manifest, where "no quorum" must be a 503.
type services struct {
	*service.REST
	quorum func(context.Context) error // returns an API error
}

func (s *services) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, opts *metav1.CreateOptions) (runtime.Object, error) {
	if err := s.quorum(ctx); err != nil {
		return nil, err
	}
	return s.REST.Create(ctx, obj, validate, opts)
}
