package dnsserver

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// Source is the local copy of what the cluster wants. Its methods are called
// concurrently for every question; they answer from memory, and what they
// return is shared and not changed.
type Source interface {
	// Synced says whether the copy is complete. Until then every question about
	// the cluster fails, because "no such name" would be a lie.
	Synced() bool
	Namespace(name string) bool
	// Service is nil if there is none of that name.
	Service(namespace, name string) *corev1.Service
	// Slices are the EndpointSlices that belong to a Service.
	Slices(namespace, service string) []*discoveryv1.EndpointSlice
	// ServiceByIP finds the Service that has ip as a ClusterIP; nil if there is none.
	ServiceByIP(ip netip.Addr) *corev1.Service
	// Services are those of a namespace.
	Services(namespace string) []*corev1.Service
	// Ingresses have a rule for exactly that host, which may begin with "*.".
	Ingresses(host string) []*networkingv1.Ingress
	// IngressBelow says whether there is a rule for a host below name.
	IngressBelow(name string) bool
	// SlicesByIP are the EndpointSlices that have ip as an endpoint's address.
	SlicesByIP(ip netip.Addr) []*discoveryv1.EndpointSlice
}
