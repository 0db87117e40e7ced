package customresources

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"

	"github.com/rundigitalplatform/rookery/apiserver/kubestore"
	"github.com/rundigitalplatform/rookery/raftstore"
)

const (
	// definitionsPrefix is what the key of each definition begins with; its name follows.
	definitionsPrefix = "/registry/" + Group + "/customresourcedefinitions/"
	// objectsRoot is where custom resources are kept: below it <group>/<resource>/…. It is
	// apart from all built-in kinds, because nothing keeps a user from defining
	// "leases.coordination.k8s.io", and with a definition all of its objects are deleted.
	objectsRoot = "/registry/customresources"
)

// options puts the registries of custom resources on the one store, as JSON.
type options struct{ store raftstore.Store }

// GetRESTOptions implements generic.RESTOptionsGetter.
func (o options) GetRESTOptions(gr schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	return kubestore.RESTOptions(o.store, objectsRoot, gr, unstructured.UnstructuredJSONScheme, nil), nil
}
