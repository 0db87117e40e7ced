package scheduler

import (
	"context"
	"reflect"
	gosync "sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/tools/cache"
)

// emptyResources is a factory that has no object of any kind of resource.k8s.io,
// and everything else from the factory within.
//
// Dynamic resource allocation is locked on in Kubernetes 1.37, and its informers
// would wait for ever for kinds that our API does not serve.
type emptyResources struct {
	informers.SharedInformerFactory
	empty *emptyFactory
}

func newEmptyResources(f informers.SharedInformerFactory) *emptyResources {
	return &emptyResources{SharedInformerFactory: f, empty: &emptyFactory{byType: map[reflect.Type]*emptyInformer{}}}
}

func (e *emptyResources) Resource() resource.Interface {
	return resource.New(e.empty, metav1.NamespaceAll, nil)
}

// Start starts both kinds of informers; the empty ones end with stop.
func (e *emptyResources) Start(stop <-chan struct{}) {
	e.empty.Start(stop)
	e.SharedInformerFactory.Start(stop)
}

func (e *emptyResources) StartWithContext(ctx context.Context) { e.Start(ctx.Done()) }

// wait returns when the empty informers have ended.
func (e *emptyResources) wait() { e.empty.running.Wait() }

// emptyFactory makes informers that never have anything.
type emptyFactory struct {
	running gosync.WaitGroup

	mu     gosync.Mutex
	byType map[reflect.Type]*emptyInformer
}

type emptyInformer struct {
	cache.SharedIndexInformer
	started bool
}

func (f *emptyFactory) InformerName() *cache.InformerName { return nil }

// InformerFor ignores how the informer would be made: what it would list is not there.
func (f *emptyFactory) InformerFor(obj runtime.Object, _ internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := reflect.TypeOf(obj)
	if f.byType[key] == nil {
		indexers := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
		f.byType[key] = &emptyInformer{SharedIndexInformer: cache.NewSharedIndexInformer(nothing{}, obj, 0, indexers)}
	}
	return f.byType[key].SharedIndexInformer
}

func (f *emptyFactory) Start(stop <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, informer := range f.byType {
		if !informer.started {
			informer.started = true
			f.running.Go(func() { informer.Run(stop) })
		}
	}
}

// nothing lists no objects and watches them for ever.
type nothing struct{}

func (nothing) List(metav1.ListOptions) (runtime.Object, error) {
	return &metav1.List{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
}

func (nothing) Watch(metav1.ListOptions) (watch.Interface, error) { return watch.NewFake(), nil }

// IsWatchListSemanticsUnSupported makes the reflector list, not wait for a bookmark.
func (nothing) IsWatchListSemanticsUnSupported() bool { return true }
