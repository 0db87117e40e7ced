package apiserver

import (
	"fmt"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/rundigitalplatform/rookery/apiserver/customresources"
)

// types tells server-side apply and managedFields how objects are built. It uses
// the schema of client-go's apply configurations, parsed at the first write:
// 0.2 s and 20 MB of garbage, so that [Server.Run] asks for it early and hands
// the memory back.
//
// CustomResourceDefinitions have a schema of their own, parsed at the first write of one.
//
// What nobody applies is not in that schema: autoscaling/v1 Scale, which scaling
// writes, gets a schema of its own here; reviews, token requests and bindings,
// which are asked and never kept, are taken as they come.
type types struct {
	parse       func() parsed        // once
	definitions func() typeConverter // once; of CustomResourceDefinitions
	extensions  func() typeConverter // once; of APIServices
}

type typeConverter = managedfields.TypeConverter

type parsed struct {
	kinds, scale, passing typeConverter
	err                   error
}

func newTypes() *types {
	return &types{definitions: sync.OnceValue(customresources.Types), parse: sync.OnceValue(func() parsed {
		parser, err := typed.NewParser(scaleSchema)
		if err != nil {
			return parsed{err: fmt.Errorf("parse schema of Scale: %w", err)}
		}
		return parsed{
			kinds:   applyconfigurations.NewTypeConverter(legacyscheme.Scheme),
			scale:   managedfields.NewSchemeTypeConverter(legacyscheme.Scheme, parser),
			passing: managedfields.NewDeducedTypeConverter(),
		}
	})}
}

func (t *types) of(gvk schema.GroupVersionKind) (managedfields.TypeConverter, error) {
	switch gvk.Group {
	case apiregistration.GroupName:
		return t.extensions(), nil
	case customresources.Group:
		return t.definitions(), nil
	}
	p := t.parse()
	switch {
	case gvk == autoscalingv1.SchemeGroupVersion.WithKind("Scale"):
		return p.scale, p.err
	case gvk.Group == authenticationv1.GroupName, gvk.Group == authorizationv1.GroupName, gvk == corev1.SchemeGroupVersion.WithKind("Binding"):
		return p.passing, p.err
	}
	return p.kinds, p.err
}

func (t *types) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	c, err := t.of(obj.GetObjectKind().GroupVersionKind())
	if err != nil {
		return nil, err
	}
	return c.ObjectToTyped(obj, opts...)
}

// TypedToObject does not need the schema: all converters do the same here.
func (t *types) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	p := t.parse()
	if p.err != nil {
		return nil, p.err
	}
	return p.kinds.TypedToObject(v)
}

// scaleSchema describes autoscaling/v1 Scale in the form of client-go's schema.
const scaleSchema = typed.YAMLObject(`types:
- name: io.k8s.api.autoscaling.v1.Scale
  map:
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: kind, type: {scalar: string}}
    - {name: metadata, type: {namedType: any}, default: {}}
    - {name: spec, type: {namedType: spec}, default: {}}
    - {name: status, type: {namedType: any}, default: {}}
- name: spec
  map:
    fields:
    - {name: replicas, type: {scalar: numeric}}
- name: any
  scalar: untyped
  list: {elementType: {namedType: __untyped_atomic_}, elementRelationship: atomic}
  map: {elementType: {namedType: __untyped_deduced_}, elementRelationship: separable}
- name: __untyped_atomic_
  scalar: untyped
  list: {elementType: {namedType: __untyped_atomic_}, elementRelationship: atomic}
  map: {elementType: {namedType: __untyped_atomic_}, elementRelationship: atomic}
- name: __untyped_deduced_
  scalar: untyped
  list: {elementType: {namedType: __untyped_atomic_}, elementRelationship: atomic}
  map: {elementType: {namedType: __untyped_deduced_}, elementRelationship: separable}
`)
