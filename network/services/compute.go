// Package services balances Kubernetes Services over their endpoints by
// nftables, on this peer and for everything that starts here: pods, the machine
// itself and what comes in by a NodePort.
//
// What a Service adds to the rules is computed purely ([compute]) from it, its EndpointSlices
// and who is alive; a [computer] makes one set of rules of all of them, and package nft writes
// what a change of some changes in it. Names are left
// to dnsserver, endpoints to the controllers, the way to a pod to package network.
// cmd/rookery runs a [Controller].
package services

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Self is what the rules of one IP family need to know of the peer they are for. The
// family is that of ServiceCIDR.
type Self struct {
	Node        string // the peer's name
	ClusterCIDR netip.Prefix
	ServiceCIDR netip.Prefix
	DNS         netip.Addr // in ServiceCIDR, answered by the peer itself and never balanced
	Zone        string     // of the peer's Node (topology.kubernetes.io/zone); "" for none
}

func (s Self) family() knftables.Family { return nft.FamilyOf(s.ServiceCIDR.Addr()) }

// has tells whether an address is of the family.
func (s Self) has(a netip.Addr) bool { return a.IsValid() && nft.FamilyOf(a) == s.family() }

// frontend is where clients connect to; the address is zero for a NodePort.
type frontend struct {
	proto corev1.Protocol
	addr  netip.Addr
	port  uint16
}

// endpoints are those of a frontend.
type endpoints map[netip.AddrPort]struct{}

// table is what one Service comes to: its part of the rules, and what connection tracking
// and load balancers must agree with.
type table struct {
	chains   map[string]nft.Chain
	sets     map[string]nft.Set     // of its own
	elements map[nft.Element]string // of the sets of the base

	udp    map[frontend]endpoints  // of each UDP frontend
	dead   map[netip.Addr]struct{} // endpoints on dead nodes
	health map[uint16]health       // by healthCheckNodePort
}

// compute is what one Service comes to in self's family. It is pure; alive is asked for other
// nodes only.
func compute(svc *corev1.Service, of []*discoveryv1.EndpointSlice, groups *Split, alive func(string) bool, self Self) table {
	t := table{
		chains: map[string]nft.Chain{}, sets: map[string]nft.Set{}, elements: map[nft.Element]string{},
		udp: map[frontend]endpoints{}, dead: map[netip.Addr]struct{}{}, health: map[uint16]health{},
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName || len(self.clusterIPs(svc)) == 0 {
		return t
	}
	here := map[netip.Addr]struct{}{}
	for _, port := range svc.Spec.Ports {
		w := svcPort{t: &t, self: self, svc: svc, port: port, split: groups, proto: strings.ToLower(string(protocol(port)))}
		w.name = fmt.Sprintf("%s/%s/%s/%s", svc.Namespace, svc.Name, w.proto, portName(port))
		all := portEndpoints(of, port, groups, alive, self, t.dead)
		for _, e := range usable(all, true) {
			here[e.at.Addr()] = struct{}{}
		}
		w.write(all)
	}
	if port := svc.Spec.HealthCheckNodePort; port > 0 && port < 1<<16 && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		h := health{LocalEndpoints: len(here), ServiceProxyHealthy: true}
		h.Service.Namespace, h.Service.Name = svc.Namespace, svc.Name
		t.health[uint16(port)] = h
	}
	return t
}

func portName(p corev1.ServicePort) string {
	if p.Name != "" {
		return p.Name
	}
	return fmt.Sprint(p.Port) // a port name has a letter, so this is not one
}

// svcPort writes the rules of one port of one Service. Every chain and set carries the port's
// name, so that one Service's change rewrites no other's; but for the shared chains, which say
// the same for all.
type svcPort struct {
	t     *table
	self  Self
	svc   *corev1.Service
	port  corev1.ServicePort
	split *Split // nil: all endpoints alike
	proto string // lower case
	name  string
}

func (p *svcPort) write(all []endpoint) {
	cluster, local := usable(all, false), usable(all, true)
	everywhere := cluster
	cluster = near(cluster, p.self.Node, p.self.Zone)
	internal, external := cluster, cluster
	internalChain, externalChain := "cluster-"+p.name, "cluster-"+p.name
	if it := p.svc.Spec.InternalTrafficPolicy; it != nil && *it == corev1.ServiceInternalTrafficPolicyLocal {
		internal, internalChain = local, "local-"+p.name
	}
	outside := p.svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && p.hasExternal()
	if outside {
		external, externalChain = local, "external-"+p.name
	}
	p.track(everywhere)
	for _, a := range p.balancerAddrs() {
		p.element("balancer-ips", a.String(), "")
	}
	if len(cluster) == 0 {
		// Nothing translates the ClusterIP, and what is left with a service address is refused,
		// or a load balancer's; all else must be refused by name.
		for _, a := range p.self.addrs(p.svc.Spec.ExternalIPs) {
			p.element("external-rejects", fmt.Sprintf("%s . %s . %d", a, p.proto, p.port.Port), "")
		}
		if p.port.NodePort != 0 {
			p.element("nodeport-rejects", fmt.Sprintf("%s . %d", p.proto, p.port.NodePort), "")
		}
		return
	}
	for _, e := range everywhere {
		if !p.self.ClusterCIDR.Contains(e.at.Addr()) {
			p.element("outside-endpoints", fmt.Sprintf("%s . %s . %d", e.at.Addr(), p.proto, e.at.Port()), "")
		}
	}
	if !outside {
		in, out := p.target(internalChain, internal), target{}
		if p.hasExternal() {
			out = p.target(externalChain, external)
		}
		p.frontends(in, out)
		return
	}
	p.frontends(target{chain: internalChain}, target{chain: externalChain})
	p.balance(internalChain, internal)
	// Who is inside is served by any endpoint: the policy protects the addresses
	// of clients outside, and those inside are not translated anyway.
	p.balance("cluster-"+p.name, cluster)
	p.balance("local-"+p.name, local)
	p.t.chains[externalChain] = nft.Chain{Rules: []string{
		fmt.Sprintf("%s saddr %s goto cluster-%s", p.ip(), p.self.ClusterCIDR.Masked(), p.name),
		"fib saddr type local goto cluster-" + p.name,
		"goto local-" + p.name,
	}}
}

// ip is the family as rules have it.
func (p *svcPort) ip() knftables.Family { return p.self.family() }

func (p *svcPort) hasExternal() bool { return p.port.NodePort != 0 || len(p.externalAddrs()) > 0 }

// externalAddrs are the addresses outside the service range that lead to the Service.
func (p *svcPort) externalAddrs() []netip.Addr {
	return append(p.self.addrs(p.svc.Spec.ExternalIPs), p.balancerAddrs()...)
}

// balancerAddrs are those that a load balancer gave the Service.
func (p *svcPort) balancerAddrs() []netip.Addr {
	var texts []string
	for _, in := range p.svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, in.IP)
		}
	}
	return p.self.addrs(texts)
}

// addrs are those of the family.
func (s Self) addrs(texts []string) (out []netip.Addr) {
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil && s.has(a) {
			out = append(out, a)
		}
	}
	return out
}

func (p *svcPort) clusterAddrs() []netip.Addr {
	return slices.DeleteFunc(p.self.clusterIPs(p.svc), func(a netip.Addr) bool { return a == p.self.DNS })
}

// clusterIPs are the Service's of the family; none if it is not of the family.
func (s Self) clusterIPs(svc *corev1.Service) []netip.Addr {
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{svc.Spec.ClusterIP}
	}
	return s.addrs(ips)
}

// target is where the connections to a frontend go.
type target struct {
	chain string     // of the Service; "": the one that all share which have as many endpoints
	to    []endpoint // what the shared chain chooses from
}

// target is one of these endpoints. Where they are alike no rule is the Service's own: see base.
func (p *svcPort) target(chain string, to []endpoint) target {
	if p.split == nil && !p.sticky() && len(to) > 0 {
		return target{to: to}
	}
	p.balance(chain, to)
	return target{chain: chain}
}

func (p *svcPort) frontends(internal, external target) {
	for _, a := range p.clusterAddrs() {
		p.front(serviceIPs, a, internal)
	}
	for _, a := range p.self.addrs(p.svc.Spec.ExternalIPs) {
		p.front(serviceIPs, a, external)
	}
	balancer := external
	if ranges := p.sources(); len(p.svc.Spec.LoadBalancerSourceRanges) > 0 && len(p.balancerAddrs()) > 0 {
		balancer.chain = "sources-" + p.name
		var rules []string
		if len(ranges) > 0 {
			rules = append(rules, fmt.Sprintf("%s saddr { %s } goto %s", p.ip(), strings.Join(ranges, " , "), p.chain(serviceIPs, external)))
		}
		p.t.chains[balancer.chain] = nft.Chain{Rules: append(rules, "drop")}
	}
	for _, a := range p.balancerAddrs() {
		p.front(serviceIPs, a, balancer)
	}
	if p.port.NodePort != 0 {
		p.front(serviceNodePorts, netip.Addr{}, external)
	}
}

// front leads from an address of the Service, or from its node port, to the target.
func (p *svcPort) front(set string, a netip.Addr, t target) {
	at, port := "", p.port.NodePort
	if set == serviceIPs {
		at, port = a.String()+" . ", p.port.Port
	}
	p.element(set, fmt.Sprintf("%s%s . %d", at, p.proto, port), "goto "+p.chain(set, t))
	for i, e := range t.to {
		p.element(endpointsOf(set, p.proto), fmt.Sprintf("%s%d . %d", at, port, i), fmt.Sprintf("%s . %d", e.at.Addr(), e.at.Port()))
	}
}

// chain is the target's for frontends of that set.
func (p *svcPort) chain(set string, t target) string {
	if t.chain != "" {
		return t.chain
	}
	name := fmt.Sprintf("%s-%s-one-of-%d", set, p.proto, len(t.to))
	p.t.chains[name] = nft.Chain{Rules: []string{fmt.Sprintf("meta l4proto %s dnat %s addr . port to %s . numgen random mod %d map @%s",
		p.proto, p.ip(), frontendOf(set, p.proto, p.ip()), len(t.to), endpointsOf(set, p.proto))}}
	return name
}

// sources are the family's ranges that may use the load balancer's addresses, without those
// that lie within another.
func (p *svcPort) sources() (out []string) {
	var all []netip.Prefix
	for _, text := range p.svc.Spec.LoadBalancerSourceRanges {
		if r, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil && p.self.has(r.Addr()) {
			all = append(all, r.Masked())
		}
	}
	for _, r := range nft.Outermost(all) {
		out = append(out, r.String())
	}
	return out
}

// element adds to a map or set of the base; the first port to ask for a key has it.
func (p *svcPort) element(set, key, value string) {
	at := nft.Element{Set: set, Key: key}
	if _, taken := p.t.elements[at]; !taken {
		p.t.elements[at] = value
	}
}

// balance writes the chain that sends a new connection to one of the endpoints: each as
// likely as the others, or by the shares of their groups.
func (p *svcPort) balance(chain string, to []endpoint) {
	if p.split == nil {
		p.t.chains[chain] = nft.Chain{Rules: p.even(to)}
		return
	}
	weights, groups := map[string]int{}, map[string][]endpoint{}
	var getting []endpoint
	for _, e := range to {
		if w := p.split.Weights[e.group]; w > 0 && (len(weights) < slots || weights[e.group] > 0) {
			weights[e.group] = w
			groups[e.group], getting = append(groups[e.group], e), append(getting, e)
		}
	}
	if len(groups) < 2 {
		p.t.chains[chain] = nft.Chain{Rules: p.even(getting)}
		return
	}
	var rules []string
	if p.sticky() { // who was here before goes on with the same endpoint
		_, rules = p.clients(getting)
	}
	for name, members := range groups {
		p.t.chains[groupChain(chain, name)] = nft.Chain{Rules: p.even(members)}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "numgen inc mod %d vmap {", slots)
	for i, name := range turns(weights) {
		fmt.Fprintf(&b, "%s %d : goto %s", comma(i), i, groupChain(chain, name))
	}
	p.t.chains[chain] = nft.Chain{Rules: append(rules, b.String()+" }")}
}

// groupChain is named by a hash: a group's name may be anything.
func groupChain(chain, group string) string {
	h := fnv.New32a()
	h.Write([]byte(group))
	return fmt.Sprintf("%s__%08x", chain, h.Sum32())
}

func (p *svcPort) sticky() bool {
	return p.svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP
}

// even are the rules that make each endpoint as likely as the others.
func (p *svcPort) even(to []endpoint) []string {
	switch {
	case len(to) == 0:
		return []string{"drop"} // a Local policy, and all endpoints are elsewhere; or groups without a share
	case p.sticky():
		return p.stickyRules(to)
	case len(to) == 1:
		return []string{fmt.Sprintf("meta l4proto %s dnat to %s", p.proto, to[0].at)}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "meta l4proto %s dnat %s addr . port to numgen random mod %d map {", p.proto, p.ip(), len(to))
	for i, e := range to {
		fmt.Fprintf(&b, "%s %d : %s . %d", comma(i), i, e.at.Addr(), e.at.Port())
	}
	return []string{b.String() + " }"}
}

// stickyRules send a client back to where it was, as long as that is still an
// endpoint: each has a set of its clients, which forgets after the timeout.
func (p *svcPort) stickyRules(to []endpoint) []string {
	chains, rules := p.clients(to)
	var b strings.Builder
	fmt.Fprintf(&b, "numgen random mod %d vmap {", len(to))
	for i, chain := range chains {
		fmt.Fprintf(&b, "%s %d : goto %s", comma(i), i, chain)
	}
	return append(rules, b.String()+" }")
}

// clients makes each endpoint's set of clients and its chain, and returns the chains and the
// rules that send known clients to theirs.
func (p *svcPort) clients(to []endpoint) (chains, rules []string) {
	timeout := corev1.DefaultClientIPServiceAffinitySeconds
	if c := p.svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		timeout = *c.ClientIP.TimeoutSeconds
	}
	for _, e := range to {
		id := fmt.Sprintf("%s__%s/%d", p.name, nft.Name(e.at.Addr()), e.at.Port())
		// A set cannot change its timeout, so another timeout is another set.
		set := fmt.Sprintf("affinity-%s-%d", id, timeout)
		p.t.sets[set] = nft.Set{Type: nft.AddressType(p.self.family()), Timeout: time.Duration(timeout) * time.Second}
		p.t.chains["endpoint-"+id] = nft.Chain{Rules: []string{
			fmt.Sprintf("update @%s { %s saddr }", set, p.ip()),
			fmt.Sprintf("meta l4proto %s dnat to %s", p.proto, e.at),
		}}
		chains = append(chains, "endpoint-"+id)
		rules = append(rules, fmt.Sprintf("%s saddr @%s goto endpoint-%s", p.ip(), set, id))
	}
	return chains, rules
}

func comma(i int) string {
	if i == 0 {
		return ""
	}
	return " ," // knftables takes a comma at the end of a name for a part of it
}

// track notes what tracked UDP flows must agree with: they have no end that
// would make them choose again.
func (p *svcPort) track(to []endpoint) {
	if protocol(p.port) != corev1.ProtocolUDP {
		return
	}
	set := endpoints{}
	for _, e := range to {
		set[e.at] = struct{}{}
	}
	for _, a := range append(p.clusterAddrs(), p.externalAddrs()...) {
		p.t.udp[frontend{corev1.ProtocolUDP, a, uint16(p.port.Port)}] = set
	}
	if p.port.NodePort != 0 {
		p.t.udp[frontend{corev1.ProtocolUDP, netip.Addr{}, uint16(p.port.NodePort)}] = set
	}
}
