package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
)

const (
	// discoverEvery is how often the garbage collector and the quotas look for new kinds,
	// which users define at any time; upstream's.
	discoverEvery = 30 * time.Second
	graphTimeout  = 30 * time.Second // upstream's; after it the collector begins with what it has
)

func runGarbageCollector(ctx context.Context, e *env) error {
	objects, err := metadata.NewForConfig(e.config)
	if err != nil {
		return fmt.Errorf("make metadata client: %w", err)
	}
	mapper := newMapper(e.client.Discovery())
	started := make(chan struct{})
	close(started) // the process runs the shared informers
	graph := &graphInformers{term: e.Term, metadata: metadatainformer.NewSharedInformerFactory(objects, 0)}
	c, err := garbagecollector.NewGarbageCollector(ctx, e.client, objects, mapper, garbagecollector.DefaultIgnoredResources(), graph, started)
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { c.Sync(ctx, e.client.Discovery().(discovery.ServerResourcesInterface), discoverEvery) })
	// Whatever ends Run, nothing of it may outlive this life.
	defer func() {
		cancel()
		running.Wait()
		graph.metadata.Shutdown()
	}()
	c.Run(ctx, workers, graphTimeout)
	return nil
}

// graphInformers feeds the garbage collector, which watches every kind there is:
// from the shared informer where the process has one anyway, else only the
// metadata, so that Secrets and the like are not held in memory for it.
type graphInformers struct {
	term     *Term
	metadata metadatainformer.SharedInformerFactory
}

func (g *graphInformers) ForResource(resource schema.GroupVersionResource) (informers.GenericInformer, error) {
	if isShared(resource) {
		return g.term.ForResource(resource)
	}
	return g.metadata.ForResource(resource), nil
}

func (g *graphInformers) Start(stop <-chan struct{}) {
	g.term.Start(stop)
	g.metadata.Start(stop)
}

// isShared names the kinds whose informers other controllers, the scheduler or the
// agent run anyway.
func isShared(resource schema.GroupVersionResource) bool {
	switch resource.Group + "/" + resource.Version {
	case "/v1":
		switch resource.Resource {
		case "pods", "nodes", "services", "namespaces", "configmaps", "serviceaccounts", "persistentvolumes", "persistentvolumeclaims":
			return true
		}
	case "apps/v1", "batch/v1", "discovery.k8s.io/v1", "rbac.authorization.k8s.io/v1":
		return true
	}
	return false
}
