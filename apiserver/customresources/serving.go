package customresources

import (
	"context"
	"fmt"
	"net/http"
	"time"

	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	informers "k8s.io/apiextensions-apiserver/pkg/client/informers/externalversions/apiextensions/v1"
	listers "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/establish"
	"k8s.io/apiextensions-apiserver/pkg/controller/finalizer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// resync is upstream's: what deletes the objects of a definition relies on it to try again.
const resync = 5 * time.Minute

// crHandler is upstream's handler, whose type has no exported name.
type crHandler interface {
	http.Handler
	finalizer.CRClientGetter
}

// serving is what a peer has once there is a definition. Schemas, validators and compiled
// rules of a definition are made by the first request for its objects.
type serving struct {
	client   clientset.Interface
	informer cache.SharedIndexInformer
	lister   listers.CustomResourceDefinitionLister
	handler  crHandler
}

func newServing(cfg Config) (*serving, error) {
	client, err := clientset.NewForConfig(cfg.Client)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	s := &serving{client: client, informer: informers.NewCustomResourceDefinitionInformer(client, resync, cache.Indexers{})}
	if err := s.informer.SetTransform(withoutManagers); err != nil {
		return nil, fmt.Errorf("set up informer: %w", err)
	}
	s.lister = listers.NewCustomResourceDefinitionLister(s.informer.GetIndexer())
	kind := kindInformer{s.informer, settledLister{s.lister}}
	// The handler queues here what waits to be established. Nobody works off this queue, which
	// holds each name once: the leader has its own.
	idle := establish.NewEstablishingController(kind, client.ApiextensionsV1())
	s.handler, err = extensions.NewCustomResourceDefinitionHandler(
		nil, nil, // discovery is answered by API
		kind, http.HandlerFunc(notFound),
		options{cfg.Store},
		cfg.Admission, idle, cfg.Services, nil,
		1, // masters: more would delay Established by five seconds, for which API.await stands in
		cfg.Authorizer, cfg.RequestTimeout, cfg.WatchTimeout,
		map[string]*spec.Schema{}, // what a definition's own document leaves out, which is nothing; nil would mean no schema for server-side apply
		cfg.MaxBodyBytes,
	)
	if err != nil {
		return nil, fmt.Errorf("make handler: %w", err)
	}
	context.AfterFunc(cfg.Life, func() { closeQueue(idle) })
	return s, nil
}

// withoutManagers leaves out who manages which field, which is half of a definition and read
// by nobody here. A status that is written without it leaves it as it is.
func withoutManagers(obj any) (any, error) {
	if crd, ok := obj.(*definitionsv1.CustomResourceDefinition); ok {
		crd.ManagedFields = nil
	}
	return obj, nil
}

// closeQueue ends the goroutines of a controller's queue: one that has been told to run
// under a context that is over does nothing else.
func closeQueue(c *establish.EstablishingController) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	c.RunWithContext(over)
}

// kindInformer is the informer of definitions as upstream's constructors want it.
type kindInformer struct {
	informer cache.SharedIndexInformer
	lister   listers.CustomResourceDefinitionLister
}

func (k kindInformer) Informer() cache.SharedIndexInformer            { return k.informer }
func (k kindInformer) Lister() listers.CustomResourceDefinitionLister { return k.lister }
