package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/scale"
	stockcontroller "k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/disruption"
	"k8s.io/kubernetes/pkg/controller/resourcequota"
	"k8s.io/kubernetes/pkg/quota/v1/evaluator/core"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
)

// recount is how often a quota's use is counted from the start, as upstream.
const recount = 5 * time.Minute

// runDisruption keeps the status of PodDisruptionBudgets, by which evictions are allowed.
func runDisruption(ctx context.Context, e *env) error {
	mapper := newMapper(e.client.Discovery())
	scales, err := scale.NewForConfig(e.config, mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(e.client.Discovery()))
	if err != nil {
		return fmt.Errorf("make scale client: %w", err)
	}
	apps := e.Apps().V1()
	c := disruption.NewDisruptionController(ctx, e.Core().V1().Pods(), e.Policy().V1().PodDisruptionBudgets(), e.Core().V1().ReplicationControllers(),
		apps.ReplicaSets(), apps.Deployments(), apps.StatefulSets(), e.client, mapper, scales, e.client.Discovery())
	e.Start(ctx.Done())
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { relearn(ctx, mapper) })
	// Whatever ends Run, nothing of it may outlive this life.
	defer running.Wait()
	defer cancel()
	c.Run(ctx, workers)
	return nil
}

// runResourceQuota keeps the status of ResourceQuotas, by which creations are allowed.
func runResourceQuota(ctx context.Context, e *env) error {
	objects, err := metadata.NewForConfig(e.config)
	if err != nil {
		return fmt.Errorf("make metadata client: %w", err)
	}
	// As quotainstall.NewQuotaConfigurationForControllers, without the kinds that our API does not serve.
	evaluators, err := core.NewEvaluators(generic.ListerFuncForResourceFunc(e.ForResource), e.Term, func(r schema.GroupVersionResource) bool {
		return r.Group != "resource.k8s.io"
	})
	if err != nil {
		return fmt.Errorf("build quota evaluators: %w", err)
	}
	started := make(chan struct{})
	close(started) // the process runs the shared informers
	graph := &graphInformers{term: e.Term, metadata: metadatainformer.NewSharedInformerFactory(objects, 0)}
	discover := e.client.Discovery().(discovery.ServerResourcesInterface).ServerPreferredNamespacedResources
	c, err := resourcequota.NewController(ctx, &resourcequota.ControllerOptions{
		QuotaClient:               e.client.CoreV1(),
		ResourceQuotaInformer:     e.Core().V1().ResourceQuotas(),
		ResyncPeriod:              stockcontroller.StaticResyncPeriodFunc(recount),
		InformerFactory:           graph,
		ReplenishmentResyncPeriod: stockcontroller.NoResyncPeriodFunc,
		DiscoveryFunc:             discover,
		IgnoredResourcesFunc:      quotainstall.DefaultIgnoredResources,
		InformersStarted:          started,
		Registry:                  generic.NewRegistry(evaluators),
		UpdateFilter:              quotainstall.DefaultUpdateFilter(),
	})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	e.Start(ctx.Done())
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { c.Sync(ctx, discover, discoverEvery) })
	// Whatever ends Run, nothing of it may outlive this life.
	defer func() {
		cancel()
		running.Wait()
		graph.metadata.Shutdown()
	}()
	c.Run(ctx, workers)
	return nil
}
