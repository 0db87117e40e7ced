package apiserver

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	service "k8s.io/kubernetes/pkg/registry/core/service/storage"
)

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
