package kubestore

import (
	"path"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// RESTOptions put the registry of a resource on a store: its objects are kept under
// root/<group>/<resource>, without the group for core, as codec encodes them, and no watch
// cache stands between, because the store answers watches from memory itself. encode is what
// codec encodes to; nil: known to the registry. Destroying the registry ends its watches.
func RESTOptions(store raftstore.Store, root string, gr schema.GroupResource, codec runtime.Codec, encode runtime.GroupVersioner) generic.RESTOptions {
	config := &storagebackend.ConfigForResource{GroupResource: gr}
	config.Codec, config.EncodeVersioner = codec, encode
	return generic.RESTOptions{
		StorageConfig:           config,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 1,
		ResourcePrefix:          path.Join(root, gr.Group, gr.Resource),
		Decorator: func(c *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error),
			newFunc, newList func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs, _ *cache.Indexers,
		) (storage.Interface, factory.DestroyFunc, error) {
			s, err := New(store, Config{
				Codec: c.Codec, NewFunc: newFunc, NewListFunc: newList, ResourcePrefix: prefix, GroupResource: c.GroupResource,
				// Events are many and seldom read: not worth keeping decoded.
				Uncached: c.GroupResource == schema.GroupResource{Resource: "events"},
			})
			if err != nil {
				return nil, nil, err
			}
			return s, s.Close, nil
		},
	}
}
