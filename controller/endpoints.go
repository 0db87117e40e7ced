package controller

import (
	"context"
	"time"

	"k8s.io/kubernetes/pkg/controller/endpoint"
	"k8s.io/kubernetes/pkg/controller/endpointslicemirroring"
)

const (
	// olderBatch gathers the changes of a Service's pods into one write of its
	// Endpoints. Nothing of ours reads them, so they may come later than the slices.
	olderBatch = time.Second
	// mirroredEndpoints of one subset at most, as upstream.
	mirroredEndpoints = 1000
)

// runEndpoints keeps the older kind in step with each Service's pods: Prometheus and
// many ingress controllers read it.
func runEndpoints(ctx context.Context, e *env) error {
	c := endpoint.NewEndpointController(ctx, e.Core().V1().Pods(), e.Core().V1().Services(), e.Core().V1().Endpoints(), e.client, olderBatch)
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}

// runMirroring makes EndpointSlices of Endpoints that people write for Services without selector.
func runMirroring(ctx context.Context, e *env) error {
	c := endpointslicemirroring.NewController(ctx, e.Core().V1().Endpoints(), e.Discovery().V1().EndpointSlices(), e.Core().V1().Services(),
		mirroredEndpoints, e.client, endpointBatch)
	e.Start(ctx.Done())
	c.Run(ctx, workers)
	return nil
}
