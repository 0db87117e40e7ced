package dnsserver

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Names of the indexes, ours by prefix because the informers are shared.
const (
	byService = "rookery-dns/service"
	byIP      = "rookery-dns/ip"
	byHost    = "rookery-dns/host"
)

// Kube is the [Source] over a process's shared informers.
type Kube struct {
	namespaces, services, slices, ingresses cache.Indexer
	synced                                  []cache.InformerSynced
}

// NewKube asks the factory for the informers it needs and gives them the
// indexes it looks up by. Call it before the factory is started; the caller
// starts and stops the factory.
func NewKube(factory informers.SharedInformerFactory) (*Kube, error) {
	namespaces := factory.Core().V1().Namespaces().Informer()
	services := factory.Core().V1().Services().Informer()
	slices := factory.Discovery().V1().EndpointSlices().Informer()
	ingresses := factory.Networking().V1().Ingresses().Informer()
	if err := services.AddIndexers(serviceIndexers()); err != nil {
		return nil, fmt.Errorf("index services: %w", err)
	}
	if err := slices.AddIndexers(sliceIndexers()); err != nil {
		return nil, fmt.Errorf("index endpoint slices: %w", err)
	}
	if err := ingresses.AddIndexers(ingressIndexers()); err != nil {
		return nil, fmt.Errorf("index ingresses: %w", err)
	}
	return &Kube{
		namespaces: namespaces.GetIndexer(), services: services.GetIndexer(), slices: slices.GetIndexer(), ingresses: ingresses.GetIndexer(),
		synced: []cache.InformerSynced{namespaces.HasSynced, services.HasSynced, slices.HasSynced, ingresses.HasSynced},
	}, nil
}

// serviceIndexers are beside the index by namespace that the factory makes.
func serviceIndexers() cache.Indexers {
	return cache.Indexers{byIP: func(obj any) ([]string, error) {
		svc, ok := obj.(*corev1.Service)
		if !ok {
			return nil, nil
		}
		return canonicalIPs(svc.Spec.ClusterIPs), nil
	}}
}

func sliceIndexers() cache.Indexers {
	return cache.Indexers{
		byService: func(obj any) ([]string, error) {
			slice, ok := obj.(*discoveryv1.EndpointSlice)
			if !ok || slice.Labels[discoveryv1.LabelServiceName] == "" {
				return nil, nil
			}
			return []string{slice.Namespace + "/" + slice.Labels[discoveryv1.LabelServiceName]}, nil
		},
		byIP: func(obj any) ([]string, error) {
			slice, ok := obj.(*discoveryv1.EndpointSlice)
			if !ok {
				return nil, nil
			}
			var ips []string
			for _, ep := range slice.Endpoints {
				ips = append(ips, canonicalIPs(ep.Addresses)...)
			}
			return ips, nil
		},
	}
}

func ingressIndexers() cache.Indexers {
	return cache.Indexers{byHost: func(obj any) ([]string, error) {
		ing, ok := obj.(*networkingv1.Ingress)
		if !ok {
			return nil, nil
		}
		return ingressHosts(ing), nil
	}}
}

// canonicalIPs leaves out what is no address, such as the ClusterIP "None".
func canonicalIPs(in []string) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip.Unmap().String())
		}
	}
	return out
}

func (k *Kube) Synced() bool {
	for _, synced := range k.synced {
		if !synced() {
			return false
		}
	}
	return true
}

func (k *Kube) Namespace(name string) bool {
	_, found, err := k.namespaces.GetByKey(name)
	return err == nil && found
}

func (k *Kube) Service(namespace, name string) *corev1.Service {
	obj, found, err := k.services.GetByKey(namespace + "/" + name)
	if err != nil || !found {
		return nil
	}
	svc, _ := obj.(*corev1.Service)
	return svc
}

func (k *Kube) Slices(namespace, service string) []*discoveryv1.EndpointSlice {
	return lookup[*discoveryv1.EndpointSlice](k.slices, byService, namespace+"/"+service)
}

func (k *Kube) ServiceByIP(ip netip.Addr) *corev1.Service {
	found := lookup[*corev1.Service](k.services, byIP, ip.Unmap().String())
	if len(found) == 0 {
		return nil
	}
	return found[0]
}

func (k *Kube) SlicesByIP(ip netip.Addr) []*discoveryv1.EndpointSlice {
	return lookup[*discoveryv1.EndpointSlice](k.slices, byIP, ip.Unmap().String())
}

func (k *Kube) Services(namespace string) []*corev1.Service {
	return lookup[*corev1.Service](k.services, cache.NamespaceIndex, namespace)
}

func (k *Kube) Ingresses(host string) []*networkingv1.Ingress {
	return lookup[*networkingv1.Ingress](k.ingresses, byHost, host)
}

func (k *Kube) IngressBelow(name string) bool { return len(k.Ingresses("."+name)) > 0 }

// lookup returns nothing on an error: the only one that ByIndex has is an
// index that does not exist, and NewKube has made all of them.
func lookup[T any](indexer cache.Indexer, index, key string) []T {
	objs, err := indexer.ByIndex(index, key)
	if err != nil {
		return nil
	}
	out := make([]T, 0, len(objs))
	for _, obj := range objs {
		if t, ok := obj.(T); ok {
			out = append(out, t)
		}
	}
	return out
}
