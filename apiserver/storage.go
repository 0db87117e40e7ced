package apiserver

import (
	"fmt"
	"path"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/rundigitalplatform/rookery/apiserver/kubestore"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// registryPrefix is where objects are kept: /registry/<group>/<resource>/…,
// without the group for core.
const registryPrefix = "/registry"

// restOptions puts every registry on the one store: objects are written as
// protobuf in their group's preferred version, and no watch cache stands between,
// because the store answers watches from memory itself.
type restOptions struct{ store raftstore.Store }

func (r restOptions) GetRESTOptions(gr schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	versions := legacyscheme.Scheme.PrioritizedVersionsForGroup(gr.Group)
	if len(versions) == 0 {
		return generic.RESTOptions{}, fmt.Errorf("no version of group %q is known", gr.Group)
	}
	proto, ok := runtime.SerializerInfoForMediaType(legacyscheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		return generic.RESTOptions{}, fmt.Errorf("no protobuf serializer for %s", gr)
	}
	// Of all groups served, autoscaling alone has two versions; its preferred one, v2, holds all of v1.
	encode := runtime.NewMultiGroupVersioner(versions[0], schema.GroupKind{Group: gr.Group})
	internal := schema.GroupVersion{Group: gr.Group, Version: runtime.APIVersionInternal}
	codec := runtime.NewCodec(
		legacyscheme.Codecs.EncoderForVersion(proto.Serializer, encode),
		legacyscheme.Codecs.DecoderToVersion(proto.Serializer, runtime.NewCoercingMultiGroupVersioner(internal, schema.GroupKind{Group: gr.Group})),
	)
	config := &storagebackend.ConfigForResource{GroupResource: gr}
	config.Codec, config.EncodeVersioner = codec, encode
	return generic.RESTOptions{
		StorageConfig:           config,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 1,
		ResourcePrefix:          path.Join(registryPrefix, gr.Group, gr.Resource),
		Decorator: func(c *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error),
			newFunc, newList func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs, _ *cache.Indexers,
		) (storage.Interface, factory.DestroyFunc, error) {
			s, err := kubestore.New(r.store, kubestore.Config{
				Codec: c.Codec, NewFunc: newFunc, NewListFunc: newList, ResourcePrefix: prefix, GroupResource: c.GroupResource,
				// Events are many and seldom read: not worth keeping decoded.
				Uncached: c.GroupResource.Resource == "events",
			})
			return s, func() {}, err
		},
	}, nil
}
