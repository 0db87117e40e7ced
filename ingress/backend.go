package ingress

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"
)

// backend is a port of a Service: where it answers now.
type backend struct {
	service   string // NAMESPACE/NAME:PORT, for people
	protocol  protocol
	sticky    bool // sessionAffinity ClientIP
	endpoints []*endpoint
}

// endpoint is an address and port of a pod. It outlives the tables that name it.
type endpoint struct {
	addr    string
	pending atomic.Int64 // requests under way
}

// pick chooses an endpoint that is not in tried: the less busy one of two; with session
// affinity always the same one for a client while it is there. nil if there is none.
func (b *backend) pick(seed maphash.Seed, client string, tried []*endpoint) *endpoint {
	left := b.endpoints
	if len(tried) > 0 {
		left = slices.DeleteFunc(slices.Clone(left), func(e *endpoint) bool { return slices.Contains(tried, e) })
	}
	if len(left) == 0 {
		return nil
	}
	if b.sticky {
		// Rendezvous hashing: an endpoint that goes moves its own clients only.
		return slices.MaxFunc(left, func(x, y *endpoint) int {
			hx, hy := maphash.String(seed, client+" "+x.addr), maphash.String(seed, client+" "+y.addr)
			if hx < hy {
				return -1
			}
			return 1
		})
	}
	x, y := left[rand.IntN(len(left))], left[rand.IntN(len(left))]
	if y.pending.Load() < x.pending.Load() {
		return y
	}
	return x
}

// finder finds backends in the cluster's objects.
type finder struct {
	service func(namespace, name string) *corev1.Service
	slices  func(namespace, service string) []*discoveryv1.EndpointSlice
	alive   func(node string) bool
	known   map[string]*endpoint // of the table before, by address
	found   map[string]*endpoint
	dead    map[string]bool // addresses of endpoints on dead nodes
	done    map[string]*backend
}

// find returns the backend that ref names. It is not nil, also with an error: then it
// has no endpoints.
func (f *finder) find(namespace string, ref networkingv1.IngressBackend, p protocol) (*backend, error) {
	if ref.Service == nil {
		return &backend{service: "none"}, errors.New("backends that are no Services are not supported")
	}
	port := ref.Service.Port.Name
	if port == "" {
		port = strconv.Itoa(int(ref.Service.Port.Number))
	}
	name := namespace + "/" + ref.Service.Name + ":" + port
	key := name + " " + string(p)
	if b := f.done[key]; b != nil {
		return b, nil
	}
	b := &backend{service: name, protocol: p}
	svc := f.service(namespace, ref.Service.Name)
	if svc == nil {
		return b, fmt.Errorf("there is no Service %s/%s", namespace, ref.Service.Name)
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return b, fmt.Errorf("the Service %s/%s is an ExternalName, which has no endpoints; use one without a selector and EndpointSlices", namespace, ref.Service.Name)
	}
	i := slices.IndexFunc(svc.Spec.Ports, func(sp corev1.ServicePort) bool {
		return ref.Service.Port.Name != "" && sp.Name == ref.Service.Port.Name || ref.Service.Port.Name == "" && sp.Port == ref.Service.Port.Number
	})
	if i < 0 {
		return b, fmt.Errorf("the Service %s/%s has no port %s", namespace, ref.Service.Name, port)
	}
	b.sticky = svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP
	if b.protocol == "" {
		b.protocol = portProtocol(svc.Spec.Ports[i])
	}
	b.endpoints = f.endpoints(namespace, ref.Service.Name, svc.Spec.Ports[i].Name)
	f.done[key] = b
	return b, nil
}

// portProtocol reads appProtocol (KEP-3726).
func portProtocol(p corev1.ServicePort) protocol {
	if p.AppProtocol != nil {
		switch *p.AppProtocol {
		case "kubernetes.io/h2c", "grpc":
			return protocolH2C
		case "https", "HTTPS":
			return protocolHTTPS
		}
	}
	return protocolHTTP
}

// endpoints are the ready ones on living nodes; if there is none, those that terminate but still serve.
func (f *finder) endpoints(namespace, service, port string) []*endpoint {
	var ready, serving []*endpoint
	for _, slice := range f.slices(namespace, service) {
		for _, p := range slice.Ports {
			if p.Port == nil || ptr.Deref(p.Name, "") != port || p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, ep := range slice.Endpoints {
				for _, ip := range ep.Addresses {
					addr := net.JoinHostPort(ip, strconv.Itoa(int(*p.Port)))
					switch c := ep.Conditions; {
					case ep.NodeName != nil && !f.alive(*ep.NodeName):
						f.dead[addr] = true
					case c.Ready == nil || *c.Ready:
						ready = f.add(ready, addr)
					case ptr.Deref(c.Serving, false) && ptr.Deref(c.Terminating, false):
						serving = f.add(serving, addr)
					}
				}
			}
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return serving
}

// add appends the endpoint of an address once: a pod may be in two slices while they are rewritten.
func (f *finder) add(to []*endpoint, addr string) []*endpoint {
	ep := f.found[addr]
	if ep == nil {
		if ep = f.known[addr]; ep == nil {
			ep = &endpoint{addr: addr}
		}
		f.found[addr] = ep
	}
	if slices.Contains(to, ep) {
		return to
	}
	return append(to, ep)
}
