package controller

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	resourceclient "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
)

// Upstream's defaults, --horizontal-pod-autoscaler-….
const (
	downscaleStabilisation = 5 * time.Minute
	autoscaleTolerance     = 0.1
	cpuInitialization      = 5 * time.Minute
	initialReadinessDelay  = 30 * time.Second
)

func autoscalersOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Autoscaling().V2().HorizontalPodAutoscalers().Informer()
}

// runAutoscaler scales by the usage of pods, which our own API serves; by custom and
// external metrics if somebody's API serves those, and if none does, the
// HorizontalPodAutoscaler's conditions say that.
func runAutoscaler(ctx context.Context, e *env) error {
	found := e.client.Discovery()
	mapper := newMapper(found)
	scales, err := scale.NewForConfig(e.config, mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(found))
	if err != nil {
		return fmt.Errorf("make scale client: %w", err)
	}
	usage, err := resourceclient.NewForConfig(e.config)
	if err != nil {
		return fmt.Errorf("make client of metrics: %w", err)
	}
	external, err := external_metrics.NewForConfig(e.config)
	if err != nil {
		return fmt.Errorf("make client of external metrics: %w", err)
	}
	versions := custom_metrics.NewAvailableAPIsGetter(found)
	c := podautoscaler.NewHorizontalController(ctx, e.client.CoreV1(), scales, e.client.AutoscalingV2(), mapper,
		metrics.NewRESTMetricsClient(usage, custom_metrics.NewForConfig(e.config, mapper, versions), external),
		e.Autoscaling().V2().HorizontalPodAutoscalers(), e.Core().V1().Pods(),
		e.cfg.Autoscale, downscaleStabilisation, autoscaleTolerance, cpuInitialization, initialReadinessDelay)
	e.Start(ctx.Done())
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { relearn(ctx, mapper) })
	running.Go(func() { custom_metrics.PeriodicallyInvalidate(versions, e.cfg.Autoscale, ctx.Done()) })
	// Whatever ends Run, nothing of it may outlive this life.
	defer running.Wait()
	defer cancel()
	c.Run(ctx, workers)
	return nil
}
