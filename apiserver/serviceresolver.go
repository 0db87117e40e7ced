package apiserver

import (
	"context"
	"fmt"
	"net/url"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// serviceResolver finds the address of a Service that a webhook or an extension
// names. It asks the API itself: the call is rare, and this peer's own state answers it.
type serviceResolver struct{ client kubernetes.Interface }

// ResolveEndpoint returns the base URL (https) of a Service's port.
func (r serviceResolver) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	service, err := r.client.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("find service %s/%s: %w", namespace, name, err)
	}
	one := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	if err := one.Add(service); err != nil {
		return nil, fmt.Errorf("find service %s/%s: %w", namespace, name, err)
	}
	return proxy.ResolveCluster(corelisters.NewServiceLister(one), namespace, name, port)
}
