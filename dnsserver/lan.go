package dnsserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"
)

// defaultRate is how many answers a second a client network gets by udp: far above what
// a household asks, far below what makes an attack.
const defaultRate = 100

// LAN is what the server is to machines outside the cluster: those that are neither
// pods nor this one. The zero value refuses them everything.
type LAN struct {
	// Zone is a domain such as home.arpa in which what can be reached from outside has a name:
	// SERVICE.NAMESPACE.ZONE for Services with a load balancer's address or node ports, and the
	// hosts of Ingresses that are in it. Empty means none. Pods and this machine see it too.
	Zone string
	// Listen gives the addresses to listen on beside [Config.Addrs], e.g. 192.168.1.10:53. It is
	// asked every few seconds, for a machine's address may change. nil means none.
	Listen func() []netip.AddrPort
	// Networks are where clients may be; others are refused. nil means private and link-local addresses.
	Networks []netip.Prefix
	// Forward resolves other names for them; Cluster answers the cluster domain.
	Forward, Cluster bool
	// Rate bounds the answers by udp a second to each client network (/24, /56), so that nobody is
	// flooded through this server by forged questions. 0 means 100, negative means no bound.
	Rate int
	// Peers are the machines that forward node ports. Required with Zone; concurrent, must not block.
	Peers func() []Peer
}

// Peer is a machine of the cluster as the LAN sees it.
type Peer struct {
	Name  string
	Addrs []netip.Addr // of both IP families where it has both
	Alive bool
	// Hidden: it cannot be dialled from outside (NAT, a firewall), and is named only where no other is.
	Hidden bool
}

// private are the addresses that do not come from the internet.
func private() (all []netip.Prefix) {
	for _, s := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"} {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func (l LAN) withDefaults() LAN {
	if l.Zone != "" {
		l.Zone = dns.CanonicalName(l.Zone)
	}
	if l.Networks == nil {
		l.Networks = private()
	}
	if l.Rate == 0 {
		l.Rate = defaultRate
	}
	return l
}

func (l LAN) validate(domain string) error {
	if l.Zone == "" {
		return nil
	}
	if err := validDomain(l.Zone); err != nil {
		return err
	}
	if dns.IsSubDomain(domain, l.Zone) || dns.IsSubDomain(l.Zone, domain) {
		return fmt.Errorf("dns: the zone for the LAN, %s, and the cluster's domain %s overlap; choose another, such as home.arpa", l.Zone, domain)
	}
	return nil
}

// lanZone answers for LAN.Zone.
type lanZone struct {
	LAN
	source Source
}

// lookup answers q from memory. ours is false when q is not in the zone.
func (z *lanZone) lookup(q dns.Question) (r reply, ours bool) {
	name := dns.CanonicalName(q.Name)
	if z.Zone == "" || !dns.IsSubDomain(z.Zone, name) {
		return reply{}, false
	}
	if !z.source.Synced() {
		return reply{rcode: dns.RcodeServerFailure}, true
	}
	r, exists := z.forward(q, name)
	switch {
	case !exists:
		r = reply{rcode: dns.RcodeNameError, authority: []dns.RR{soa(z.Zone, z.Zone)}}
	case len(r.answer) == 0:
		r.authority = []dns.RR{soa(z.Zone, z.Zone)}
	}
	return r, true
}

// forward answers a name in the zone; exists is false for NXDOMAIN.
func (z *lanZone) forward(q dns.Question, name string) (r reply, exists bool) {
	labels := dns.SplitDomainName(name)
	labels = labels[:len(labels)-dns.CountLabel(z.Zone)]
	if len(labels) == 0 {
		return apex(q, z.Zone, z.listening()), true
	}
	if strings.Join(labels, ".") == "ns.dns" {
		return reply{answer: addresses(q.Name, q.Qtype, z.listening())}, true
	}
	if ips, found := z.ingress(strings.TrimSuffix(name, "."), labels); found {
		return reply{answer: addresses(q.Name, q.Qtype, ips)}, true
	}
	r, exists = z.service(q, labels)
	return r, exists || z.source.IngressBelow(strings.TrimSuffix(name, ".")) || name == "dns."+z.Zone
}

// listening are the addresses at which the LAN reaches this server.
func (z *lanZone) listening() (ips []netip.Addr) {
	if z.Listen == nil {
		return nil
	}
	for _, a := range z.Listen() {
		ips = append(ips, a.Addr())
	}
	return ips
}

// ingress finds where the Ingresses of a host are reached: by its own name, or by a
// wildcard, which stands for one label.
func (z *lanZone) ingress(host string, labels []string) ([]netip.Addr, bool) {
	found := z.source.Ingresses(host)
	if len(found) == 0 && len(labels) > 1 {
		_, parent, _ := strings.Cut(host, ".")
		found = z.source.Ingresses("*." + parent)
	}
	var ips []netip.Addr
	for _, ing := range found {
		for _, at := range ing.Status.LoadBalancer.Ingress {
			ips = append(ips, addrs([]string{at.IP})...)
		}
	}
	if len(ips) == 0 {
		return nil, len(found) > 0
	}
	peers := z.Peers()
	is := func(what func(Peer) bool) func(netip.Addr) bool {
		return func(ip netip.Addr) bool {
			return slices.ContainsFunc(peers, func(p Peer) bool { return what(p) && slices.Contains(p.Addrs, ip) })
		}
	}
	ips = slices.DeleteFunc(unique(ips), is(func(p Peer) bool { return !p.Alive }))
	if open := slices.DeleteFunc(slices.Clone(ips), is(func(p Peer) bool { return p.Hidden })); len(open) > 0 {
		return open, true
	}
	return ips, true
}

// service answers [_PORT._PROTO.]SVC.NS.ZONE and the names on the way to it.
func (z *lanZone) service(q dns.Question, labels []string) (r reply, exists bool) {
	n := len(labels)
	if n == 1 {
		return r, slices.ContainsFunc(z.source.Services(labels[0]), outside)
	}
	svc := z.source.Service(labels[n-1], labels[n-2])
	if svc == nil || !outside(svc) {
		return r, false
	}
	req := request{}
	switch rest := labels[:n-2]; {
	case len(rest) == 0:
		r.answer = addresses(q.Name, q.Qtype, z.reach(svc))
		exists = true
	case len(rest) == 1 && strings.HasPrefix(rest[0], "_"):
		req.protocol = rest[0][1:]
	case len(rest) == 2 && strings.HasPrefix(rest[0], "_") && strings.HasPrefix(rest[1], "_"):
		req.port, req.protocol = rest[0][1:], rest[1][1:]
	default:
		return r, false
	}
	srv := q.Qtype == dns.TypeSRV && (req.port != "" || req.protocol == "")
	var out []dns.RR
	for _, p := range svc.Spec.Ports {
		if !matches(req, p.Name, p.Protocol) {
			continue
		}
		exists = true
		port := p.Port
		if len(balanced(svc)) == 0 {
			port = p.NodePort
		}
		if srv && port != 0 {
			out = append(out, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: 100, Port: uint16(port), Target: svc.Name + "." + svc.Namespace + "." + z.Zone})
		}
	}
	if len(out) > 0 {
		r.answer = out
		r.extra = addresses(out[0].(*dns.SRV).Target, 0, z.reach(svc))
	}
	return r, exists
}

// outside says that a Service can be reached from outside the cluster.
func outside(svc *corev1.Service) bool {
	return len(balanced(svc)) > 0 || slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort != 0 })
}

// balanced are a Service's load balancer addresses and external addresses.
func balanced(svc *corev1.Service) (ips []netip.Addr) {
	for _, at := range svc.Status.LoadBalancer.Ingress {
		ips = append(ips, addrs([]string{at.IP})...)
	}
	return unique(append(ips, addrs(svc.Spec.ExternalIPs)...))
}

// reach is where a Service answers for the LAN: its own addresses, else the living
// peers, without hidden ones if there are others; with externalTrafficPolicy Local those that run one
// of its pods.
func (z *lanZone) reach(svc *corev1.Service) []netip.Addr {
	if ips := balanced(svc); len(ips) > 0 {
		return ips
	}
	var ips, hidden []netip.Addr
	for _, p := range z.Peers() {
		if !p.Alive || svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && !z.runs(p.Name, svc) {
			continue
		}
		for _, ip := range p.Addrs {
			switch {
			case !hasFamily(svc, ip):
			case p.Hidden:
				hidden = append(hidden, ip)
			default:
				ips = append(ips, ip)
			}
		}
	}
	if len(ips) == 0 {
		ips = hidden
	}
	return unique(ips)
}

// hasFamily tells whether a Service has node ports at addresses of that IP family.
func hasFamily(svc *corev1.Service, ip netip.Addr) bool {
	family := corev1.IPv4Protocol
	if ip.Is6() {
		family = corev1.IPv6Protocol
	}
	return len(svc.Spec.IPFamilies) == 0 || slices.Contains(svc.Spec.IPFamilies, family)
}

func (z *lanZone) runs(node string, svc *corev1.Service) bool {
	for _, slice := range z.source.Slices(svc.Namespace, svc.Name) {
		for _, ep := range slice.Endpoints {
			if ptr.Deref(ep.NodeName, "") == node && (ep.Conditions.Ready == nil || *ep.Conditions.Ready) {
				return true
			}
		}
	}
	return false
}

// ingressHosts are the index values of an Ingress: its hosts, and a dot before each
// name that exists only because a host is below it.
func ingressHosts(ing *networkingv1.Ingress) []string {
	var out []string
	for _, rule := range ing.Spec.Rules {
		host := strings.ToLower(rule.Host)
		if host == "" {
			continue
		}
		out = append(out, host)
		for _, parent, ok := strings.Cut(host, "."); ok; _, parent, ok = strings.Cut(parent, ".") {
			out = append(out, "."+parent)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
