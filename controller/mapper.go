package controller

import (
	"context"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/restmapper"
)

// newMapper finds kinds by discovery, which it asks once, when it is first asked itself.
func newMapper(d discovery.DiscoveryInterface) *restmapper.DeferredDiscoveryRESTMapper {
	return restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d))
}

// relearn has a mapper forget what it knows at every discoverEvery until ctx ends, for
// those who do not do so themselves when they hear of a kind that it does not know.
func relearn(ctx context.Context, mapper *restmapper.DeferredDiscoveryRESTMapper) {
	wait.UntilWithContext(ctx, func(context.Context) { mapper.Reset() }, discoverEvery)
}
