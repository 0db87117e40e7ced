package customresources

import (
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiextensions-apiserver/pkg/client/applyconfiguration"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Group is the API group of the definitions, Version the one that is served.
const (
	Group   = apiextensions.GroupName
	Version = "v1"
)

// Scheme knows the kinds of [Group].
func Scheme() *runtime.Scheme { return extensions.Scheme }

// Types describes the kinds of [Group] to server-side apply. It parses a schema.
func Types() managedfields.TypeConverter { return applyconfiguration.NewTypeConverter(Scheme()) }

// Definitions makes the registry of CustomResourceDefinitions and of their status. options
// keep them in the store at which [New]'s API looks, in the way of all built-in kinds.
func Definitions(options generic.RESTOptionsGetter) (map[string]rest.Storage, error) {
	all, err := customresourcedefinition.NewREST(Scheme(), options)
	if err != nil {
		return nil, fmt.Errorf("build registry of definitions: %w", err)
	}
	return map[string]rest.Storage{
		"customresourcedefinitions":        bounded{all},
		"customresourcedefinitions/status": customresourcedefinition.NewStatusREST(Scheme(), all),
	}, nil
}
