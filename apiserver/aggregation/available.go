package aggregation

import (
	"context"
	"fmt"

	kubeinformers "k8s.io/client-go/informers"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
	"k8s.io/kube-aggregator/pkg/client/informers/externalversions"
	"k8s.io/kube-aggregator/pkg/controllers/status/metrics"
	"k8s.io/kube-aggregator/pkg/controllers/status/remote"
)

// checks is how many extension servers are asked at once.
const checks = 2

// WatchAvailability keeps in each APIService's status whether its server answers, until
// ctx ends. It is for the leader, so that there is one who says it. Until there is an
// APIService that names a Service it waits and holds nothing. view is this process'
// informers, whose event handlers must be taken back when ctx has ended.
func (a *Aggregator) WatchAvailability(ctx context.Context, view kubeinformers.SharedInformerFactory) error {
	select {
	case <-a.first:
	case <-ctx.Done():
		return nil
	}
	proof, err := a.proof()
	if err != nil {
		return fmt.Errorf("get the front proxy's certificate: %w", err)
	}
	client, err := clientset.NewForConfig(a.cfg.Client)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	services := externalversions.NewSharedInformerFactory(client, 0)
	c, err := remote.New(services.Apiregistration().V1().APIServices(), view.Core().V1().Services(), view.Discovery().V1().EndpointSlices(),
		client.ApiregistrationV1(), nil, func() ([]byte, []byte) { return proof.Cert, proof.Key }, a.cfg.Resolver, metrics.New())
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	view.Start(ctx.Done())
	services.StartWithContext(ctx)
	c.Run(checks, ctx.Done())
	<-ctx.Done()
	services.Shutdown()
	return nil
}
