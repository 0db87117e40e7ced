package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

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
		out.Notes = append(out.Notes, "No endpoint can answer: connections are refused.")
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer && len(svc.Status.LoadBalancer.Ingress) == 0 {
		out.Notes = append(out.Notes, "It has no address on the LAN; `rookery describe service` may say why.")
	}
	return out, nil
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

// netTimeout is how long one try may take: longer than two lost packets.
const netTimeout = 4 * time.Second

// netCheck tries to reach the others from this peer: each peer on the pod network, one
// pod on each peer, the API's Service, and DNS.
func (p *peer) netCheck(ctx context.Context) []admin.Probe {
	var mu sync.Mutex
	var all []admin.Probe
	var wait sync.WaitGroup
	try := func(what, to string, reach func(context.Context) error) {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, netTimeout)
			defer cancel()
			probe := admin.Probe{From: p.id.Name(), To: to, What: what}
			if err := reach(ctx); err != nil {
				probe.Failed = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, probe)
		})
	}
	records, err := p.registry.Peers()
	if err != nil {
		return []admin.Probe{{From: p.id.Name(), To: "the peers", What: "pod network", Failed: err.Error()}}
	}
	for _, r := range records {
		if r.Name != p.id.Name() && !r.Witness {
			own := netip.AddrPortFrom(r.PodCIDR.Masked().Addr().Next(), r.Port)
			try("pod network", r.Name, func(ctx context.Context) error { return connect(ctx, own) })
		}
	}
	for node, pod := range p.onePodEach() {
		at, err := netip.ParseAddr(pod.Status.PodIP)
		try("pod", fmt.Sprintf("%s/%s on %s", pod.Namespace, pod.Name, node), func(ctx context.Context) error {
			if err != nil {
				return err
			}
			return connect(ctx, netip.AddrPortFrom(at, discard))
		})
	}
	settings := p.id.Settings()
	if svc, err := p.api.Informers().Core().V1().Services().Lister().Services("default").Get("kubernetes"); err == nil {
		if at, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil {
			try("Service", "default/kubernetes", func(ctx context.Context) error {
				return accepted(ctx, netip.AddrPortFrom(at, uint16(svc.Spec.Ports[0].Port)))
			})
		}
	}
	try("DNS", "kubernetes.default.svc."+settings.Domain, func(ctx context.Context) error {
		r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(settings.DNS.String(), strconv.Itoa(53)))
		}}
		_, err := r.LookupNetIP(ctx, "ip4", "kubernetes.default.svc."+settings.Domain+".")
		return err
	})
	wait.Wait()
	return all
}

// discard is a port that few pods listen on; a refusal is an answer as well.
const discard = 9

// onePodEach is a Ready pod of each peer that lives, with an address of its own.
func (p *peer) onePodEach() map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	pods, err := p.api.Informers().Core().V1().Pods().Lister().List(labels.Everything())
	if err != nil {
		p.log.Error("pods are not readable", "err", err)
	}
	for _, pod := range pods {
		node := pod.Spec.NodeName
		if !pod.Spec.HostNetwork && podReady(pod) && p.live.alive(node) && (out[node] == nil || pod.UID < out[node].UID) {
			out[node] = pod
		}
	}
	return out
}

// connect is content with a refusal: somebody is there.
func connect(ctx context.Context, at netip.AddrPort) error {
	if err := accepted(ctx, at); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

func accepted(ctx context.Context, at netip.AddrPort) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", at.String())
	if err != nil {
		return err
	}
	return conn.Close()
}
