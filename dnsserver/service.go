package dnsserver

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// endpoint is an address behind a Service that may be told to clients.
type endpoint struct {
	name string // its label below the Service: the hostname, else the dashed address
	ip   netip.Addr
}

// target is one port of a Service or endpoint, for an SRV record.
type target struct {
	name string
	port uint16
}

// service answers SVC.NS.svc and what is below it.
func (z *zone) service(q dns.Question, req request) (r reply, exists bool) {
	svc := z.source.Service(req.namespace, req.service)
	if svc == nil {
		return r, false
	}
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return z.external(q, req, svc)
	case req.kind == kindEndpoint:
		return z.endpoint(q, req, svc)
	case req.protocol != "":
		return z.port(q, req, svc)
	}
	ips := addrs(svc.Spec.ClusterIPs)
	if headless(svc) {
		for _, ep := range z.endpoints(svc, nil) {
			ips = append(ips, ep.ip)
		}
		if len(ips) == 0 {
			return r, false // as the specification says in 2.4.1
		}
	}
	r.answer = addresses(q.Name, q.Qtype, unique(ips))
	if q.Qtype == dns.TypeSRV {
		r, _ = z.srv(q, req, svc)
	}
	return r, true
}

func (z *zone) external(q dns.Question, req request, svc *corev1.Service) (r reply, exists bool) {
	if req.kind != kindService || req.protocol != "" {
		return r, false
	}
	// Some write an address there, which is no host name and cannot be a CNAME.
	if ip, err := netip.ParseAddr(svc.Spec.ExternalName); err == nil {
		r.answer = addresses(q.Name, q.Qtype, []netip.Addr{ip})
		return r, true
	}
	host := dns.CanonicalName(svc.Spec.ExternalName)
	if _, ok := dns.IsDomainName(host); !ok || host == "." {
		return r, true
	}
	r.answer = []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: host}}
	if q.Qtype != dns.TypeCNAME && q.Qtype != dns.TypeANY {
		r.chase = host
	}
	return r, true
}

func (z *zone) endpoint(q dns.Question, req request, svc *corev1.Service) (r reply, exists bool) {
	var ips []netip.Addr
	for _, ep := range z.endpoints(svc, nil) {
		if ep.name == req.host {
			ips = append(ips, ep.ip)
		}
	}
	ips = unique(ips)
	r.answer = addresses(q.Name, q.Qtype, ips)
	return r, len(ips) > 0
}

// port answers _PORT._PROTO.SVC.NS.svc and _PROTO.SVC.NS.svc, which exist as
// far as the Service has such a port.
func (z *zone) port(q dns.Question, req request, svc *corev1.Service) (r reply, exists bool) {
	for _, p := range svc.Spec.Ports {
		if matches(req, p.Name, p.Protocol) {
			exists = true
		}
	}
	if exists && req.port != "" && (q.Qtype == dns.TypeSRV || q.Qtype == dns.TypeANY) {
		r, _ = z.srv(q, req, svc)
	}
	return r, exists
}

func matches(req request, port string, proto corev1.Protocol) bool {
	if req.protocol != "" && !strings.EqualFold(req.protocol, string(proto)) {
		return false
	}
	return req.port == "" || strings.EqualFold(req.port, port)
}

// srv makes an SRV record for each port that req asks for: of the Service itself if
// it has an address, else of each endpoint.
func (z *zone) srv(q dns.Question, req request, svc *corev1.Service) (r reply, exists bool) {
	base := svc.Name + "." + svc.Namespace + ".svc." + z.domain
	hosts := map[string][]netip.Addr{}
	var targets []target
	add := func(host string, port int32, ips ...netip.Addr) {
		t := target{name: host, port: uint16(port)}
		if !slices.Contains(targets, t) {
			targets = append(targets, t)
		}
		hosts[host] = append(hosts[host], ips...)
	}
	if headless(svc) {
		z.endpoints(svc, func(ep endpoint, port discoveryv1.EndpointPort) {
			if matches(req, ptr.Deref(port.Name, ""), protocol(port.Protocol)) && ptr.Deref(port.Port, 0) != 0 {
				add(ep.name+"."+base, *port.Port, ep.ip)
			}
		})
	} else {
		for _, p := range svc.Spec.Ports {
			if matches(req, p.Name, p.Protocol) {
				add(base, p.Port, addrs(svc.Spec.ClusterIPs)...)
			}
		}
	}
	for _, t := range targets {
		r.answer = append(r.answer, &dns.SRV{
			Hdr: header(q.Name, dns.TypeSRV), Priority: 0, Weight: uint16(max(1, 100/len(targets))), Port: t.port, Target: t.name,
		})
		r.extra = append(r.extra, addresses(t.name, 0, unique(hosts[t.name]))...)
		delete(hosts, t.name)
	}
	return r, len(targets) > 0
}

// endpoints lists those that are ready (or published regardless) and on a
// living node; each, if not nil, gets them port by port.
func (z *zone) endpoints(svc *corev1.Service, each func(endpoint, discoveryv1.EndpointPort)) []endpoint {
	var out []endpoint
	for _, slice := range z.source.Slices(svc.Namespace, svc.Name) {
		for _, ep := range slice.Endpoints {
			if !z.usable(svc, ep) {
				continue
			}
			for _, ip := range addrs(ep.Addresses) {
				e := endpoint{name: endpointName(ep, ip), ip: ip}
				out = append(out, e)
				if each == nil {
					continue
				}
				for _, port := range slice.Ports {
					each(e, port)
				}
			}
		}
	}
	return out
}

func (z *zone) usable(svc *corev1.Service, ep discoveryv1.Endpoint) bool {
	// A nil condition means ready, says the API.
	if ready := ep.Conditions.Ready; ready != nil && !*ready && !svc.Spec.PublishNotReadyAddresses {
		return false
	}
	return ep.NodeName == nil || z.alive(*ep.NodeName)
}

// namesOf are the names that a reverse lookup of ip finds.
func (z *zone) namesOf(ip netip.Addr) []string {
	if svc := z.source.ServiceByIP(ip); svc != nil {
		return []string{svc.Name + "." + svc.Namespace + ".svc." + z.domain}
	}
	var names []string
	for _, slice := range z.source.SlicesByIP(ip) {
		svc := z.source.Service(slice.Namespace, slice.Labels[discoveryv1.LabelServiceName])
		if svc == nil {
			continue
		}
		for _, ep := range slice.Endpoints {
			// Only names that somebody gave: every pod behind every Service has a dashed one.
			if !slices.Contains(addrs(ep.Addresses), ip) || !z.usable(svc, ep) || (ptr.Deref(ep.Hostname, "") == "" && !headless(svc)) {
				continue
			}
			names = append(names, endpointName(ep, ip)+"."+svc.Name+"."+svc.Namespace+".svc."+z.domain)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func endpointName(ep discoveryv1.Endpoint, ip netip.Addr) string {
	if h := ptr.Deref(ep.Hostname, ""); h != "" {
		return strings.ToLower(h)
	}
	return dashed(ip)
}

func headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

func protocol(p *corev1.Protocol) corev1.Protocol {
	if p == nil {
		return corev1.ProtocolTCP
	}
	return *p
}

// addrs reads addresses and leaves out "None" and names.
func addrs(in []string) []netip.Addr {
	out := make([]netip.Addr, 0, len(in))
	for _, s := range in {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

// unique drops what is there twice: a pod may be in two slices while they are rewritten.
func unique(ips []netip.Addr) []netip.Addr {
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(ips)
}
