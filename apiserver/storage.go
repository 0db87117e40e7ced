package apiserver

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/rundigitalplatform/rookery/apiserver/kubestore"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// registryPrefix is where objects are kept: /registry/<group>/<resource>/…,
// without the group for core.
const registryPrefix = "/registry"

// restOptions puts every registry on the one store: objects are written as
// protobuf in their group's preferred version.
type restOptions struct {
	store  raftstore.Store
	scheme *runtime.Scheme // nil: Kubernetes' own
}

func (r restOptions) kinds() (*runtime.Scheme, serializer.CodecFactory) {
	if r.scheme == nil {
		return legacyscheme.Scheme, legacyscheme.Codecs
	}
	return r.scheme, serializer.NewCodecFactory(r.scheme)
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (r restOptions) GetRESTOptions(gr schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	scheme, codecs := r.kinds()
	versions := scheme.PrioritizedVersionsForGroup(gr.Group)
	if len(versions) == 0 {
		return generic.RESTOptions{}, fmt.Errorf("no version of group %q is known", gr.Group)
	}
	proto, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		return generic.RESTOptions{}, fmt.Errorf("no protobuf serializer for %s", gr)
	}
	// Of all groups served, autoscaling alone has two versions; its preferred one, v2, holds all of v1.
	encode := runtime.NewMultiGroupVersioner(versions[0], schema.GroupKind{Group: gr.Group})
	internal := schema.GroupVersion{Group: gr.Group, Version: runtime.APIVersionInternal}
	codec := runtime.NewCodec(
		codecs.EncoderForVersion(proto.Serializer, encode),
		codecs.DecoderToVersion(proto.Serializer, runtime.NewCoercingMultiGroupVersioner(internal, schema.GroupKind{Group: gr.Group})),
	)
	return kubestore.RESTOptions(r.store, registryPrefix, gr, codec, encode), nil
}
