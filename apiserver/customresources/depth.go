package customresources

import (
	"context"
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
)

// maxDepth is how deep a schema may be nested: ten times the deepest that people write.
// Upstream has no limit, and needs stack and time for each level; every peer does, also
// after a restart, so that one definition could keep a cluster of small machines down.
const maxDepth = 300

// bounded refuses definitions whose schemas are nested too deep, before anybody validates them.
type bounded struct{ *customresourcedefinition.REST }

func (b bounded) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	if err := checkDepth(obj); err != nil {
		return nil, err
	}
	return b.REST.Create(ctx, obj, validate, options)
}

func (b bounded) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc,
	forceCreate bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	info = rest.WrapUpdatedObjectInfo(info, func(_ context.Context, obj, _ runtime.Object) (runtime.Object, error) {
		return obj, checkDepth(obj)
	})
	return b.REST.Update(ctx, name, info, create, update, forceCreate, options)
}

func checkDepth(obj runtime.Object) error {
	crd, ok := obj.(*apiextensions.CustomResourceDefinition)
	if !ok {
		return fmt.Errorf("%T is no definition", obj)
	}
	schemas := []*apiextensions.CustomResourceValidation{crd.Spec.Validation}
	for _, v := range crd.Spec.Versions {
		schemas = append(schemas, v.Schema)
	}
	for _, s := range schemas {
		if s != nil && isDeeper(s.OpenAPIV3Schema, maxDepth) {
			return apierrors.NewBadRequest(fmt.Sprintf("the schema of %s is nested deeper than %d levels", crd.Name, maxDepth))
		}
	}
	return nil
}

// isDeeper looks no deeper than it has to.
func isDeeper(s *apiextensions.JSONSchemaProps, levels int) bool {
	if s == nil {
		return false
	}
	if levels == 0 {
		return true
	}
	below := func(s *apiextensions.JSONSchemaProps) bool { return isDeeper(s, levels-1) }
	for _, all := range []map[string]apiextensions.JSONSchemaProps{s.Properties, s.PatternProperties, s.Definitions} {
		for _, one := range all {
			if below(&one) {
				return true
			}
		}
	}
	for _, all := range [][]apiextensions.JSONSchemaProps{s.AllOf, s.OneOf, s.AnyOf} {
		for i := range all {
			if below(&all[i]) {
				return true
			}
		}
	}
	if s.Items != nil {
		for i := range s.Items.JSONSchemas {
			if below(&s.Items.JSONSchemas[i]) {
				return true
			}
		}
		if below(s.Items.Schema) {
			return true
		}
	}
	for _, one := range []*apiextensions.JSONSchemaPropsOrBool{s.AdditionalProperties, s.AdditionalItems} {
		if one != nil && below(one.Schema) {
			return true
		}
	}
	for _, d := range s.Dependencies {
		if below(d.Schema) {
			return true
		}
	}
	return below(s.Not)
}
