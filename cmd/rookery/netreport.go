package main

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
	"github.com/rundigitalplatform/rookery/network/services"
)

// balancerSelves are what this peer's Service rules know of it, by IP family.
func (p *peer) balancerSelves() (out []services.Self) {
	for _, r := range p.id.Settings().Ranges() {
		out = append(out, services.Self{Node: p.id.Name(), ClusterCIDR: r.PodCIDR, ServiceCIDR: r.ServiceCIDR, DNS: r.DNS, Zone: p.zone()})
	}
	return out
}

// netService is what this peer makes of a Service.
func (p *peer) netService(namespace, name string) (admin.Service, error) {
	inf := p.api.Informers()
	svc, err := inf.Core().V1().Services().Lister().Services(namespace).Get(name)
	if err != nil {
		return admin.Service{}, err
	}
	of, err := inf.Discovery().V1().EndpointSlices().Lister().EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name}))
	if err != nil {
		return admin.Service{}, err
	}
	out := admin.Service{Peer: p.id.Name(), Addresses: addressesOf(svc)}
	for _, port := range svc.Spec.Ports {
		text := fmt.Sprintf("%s %d/%s", port.Name, port.Port, port.Protocol)
		if port.NodePort != 0 {
			text += fmt.Sprintf(", on every peer %d", port.NodePort)
		}
		out.Ports = append(out.Ports, text)
	}
	used := false
	for _, self := range p.balancerSelves() {
		for _, c := range services.Explain(svc, of, nil, p.live.alive, self) {
			used = used || c.LeftOut == ""
			out.Endpoints = append(out.Endpoints, admin.Endpoint{Port: c.Port, Address: c.At.String(), Peer: c.Node, Pod: c.Pod, LeftOut: c.LeftOut})
		}
	}
	slices.SortFunc(out.Endpoints, func(a, b admin.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Address, b.Address))
	})
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		out.Notes = append(out.Notes, "It is only a name: DNS answers "+svc.Spec.ExternalName+".")
	case len(out.Endpoints) == 0 && len(svc.Spec.Selector) > 0:
		out.Notes = append(out.Notes, "No pod matches its selector "+labels.FormatLabels(svc.Spec.Selector)+" and has its ports: connections are refused.")
	case !used:
		out.Notes = append(out.Notes, unanswered(svc, of, p.live.alive, p.balancerSelves()))
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer && len(svc.Status.LoadBalancer.Ingress) == 0 {
		out.Notes = append(out.Notes, "It has no address on the LAN; `rookery describe service` may say why.")
	}
	return out, nil
}

// unanswered says what clients on this peer see of a Service none of whose endpoints are for them.
func unanswered(svc *corev1.Service, of []*discoveryv1.EndpointSlice, alive func(string) bool, selves []services.Self) string {
	everywhere := svc.DeepCopy()
	everywhere.Spec.InternalTrafficPolicy = nil
	for _, self := range selves {
		if slices.ContainsFunc(services.Explain(everywhere, of, nil, alive, self), func(c services.Candidate) bool { return c.LeftOut == "" }) {
			// As kube-proxy has it: it drops.
			return "No endpoint is on this peer, and internalTrafficPolicy is Local: connections from here are not answered and time out."
		}
	}
	return "No endpoint can answer: connections are refused."
}

func addressesOf(svc *corev1.Service) (out []string) {
	for _, ip := range svc.Spec.ClusterIPs {
		if ip == corev1.ClusterIPNone {
			ip = "none: DNS names its endpoints"
		}
		out = append(out, ip)
	}
	for _, ip := range svc.Spec.ExternalIPs {
		out = append(out, ip+" (external)")
	}
	for _, in := range svc.Status.LoadBalancer.Ingress {
		out = append(out, cmp.Or(in.IP, in.Hostname)+" (load balancer)")
	}
	return out
}
