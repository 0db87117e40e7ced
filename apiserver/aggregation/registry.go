package aggregation

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/client/applyconfiguration"
	"k8s.io/kube-aggregator/pkg/registry/apiservice/etcd"
)

// NewScheme knows the kinds of apiregistration.k8s.io.
func NewScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{apiregistration.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build scheme of %s: %w", apiregistration.GroupName, err)
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return scheme, scheme.SetVersionPriority(apiregistrationv1.SchemeGroupVersion)
}

func decoder(scheme *runtime.Scheme) runtime.Decoder {
	return serializer.NewCodecFactory(scheme).UniversalDecoder(apiregistrationv1.SchemeGroupVersion)
}

// Types tells server-side apply how an APIService is built. It parses a schema.
func Types(scheme *runtime.Scheme) managedfields.TypeConverter {
	return applyconfiguration.NewTypeConverter(scheme)
}

// Resources are the registries of apiregistration.k8s.io/v1. An APIService that would
// take the place of what is built in is refused, see [Config.Builtin].
func Resources(scheme *runtime.Scheme, options generic.RESTOptionsGetter, builtin map[schema.GroupVersion]bool) map[string]rest.Storage {
	all := etcd.NewREST(scheme, options)
	return map[string]rest.Storage{
		"apiservices":        &registry{all, builtin},
		"apiservices/status": etcd.NewStatusREST(scheme, all),
	}
}

type registry struct {
	*etcd.REST
	builtin map[schema.GroupVersion]bool
}

// Create implements [rest.Creater].
func (r *registry) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	return r.REST.Create(ctx, obj, func(ctx context.Context, obj runtime.Object) error {
		if err := r.check(obj); err != nil {
			return err
		}
		return validate(ctx, obj)
	}, o)
}

// Update implements [rest.Updater].
func (r *registry) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc,
	force bool, o *metav1.UpdateOptions,
) (runtime.Object, bool, error) {
	return r.REST.Update(ctx, name, info, create, func(ctx context.Context, obj, old runtime.Object) error {
		if err := r.check(obj); err != nil {
			return err
		}
		return update(ctx, obj, old)
	}, force, o)
}

// check refuses to hand a part of the cluster's own API to somebody else: its
// components and all its clients rely on it.
func (r *registry) check(obj runtime.Object) error {
	s, ok := obj.(*apiregistration.APIService)
	if !ok || s.Spec.Service == nil {
		return nil
	}
	gv := schema.GroupVersion{Group: s.Spec.Group, Version: s.Spec.Version}
	if replaceable, builtin := r.builtin[gv]; builtin && !replaceable {
		return apierrors.NewInvalid(apiregistration.SchemeGroupVersion.WithKind("APIService").GroupKind(), s.Name, field.ErrorList{
			field.Forbidden(field.NewPath("spec", "service"), fmt.Sprintf("%s is served by the cluster itself", gv)),
		})
	}
	return nil
}
