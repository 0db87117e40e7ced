package services

import (
	"fmt"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// The maps from where clients connect to, to chains.
const (
	serviceIPs       = "service-ips"
	serviceNodePorts = "service-nodeports"
)

// endpointsOf is the map from a set's frontends of a protocol and a number, to endpoints.
func endpointsOf(set, proto string) string { return fmt.Sprintf("%s-%s-endpoints", set, proto) }

// frontendOf is a packet's part of the key in endpointsOf.
func frontendOf(set, proto string, family knftables.Family) string {
	if set == serviceNodePorts {
		return proto + " dport"
	}
	return fmt.Sprintf("%s daddr . %s dport", family, proto)
}

// base is the part of the family's table that is there with no Service at all: one
// look-up of where a new connection goes and one of its endpoint, however many Services there are.
func base(self Self) nft.State {
	s := nft.NewState()
	ip, address := self.family(), nft.AddressType(self.family())
	loopback := "127.0.0.0/8"
	if ip == knftables.IPv6Family {
		loopback = "{ ::1 , fe80::/10 }" // a link-local address is not for a packet that is sent on, either
	}
	s.Sets[serviceIPs] = nft.Set{Map: true, Type: address + " . inet_proto . inet_service : verdict", Elements: map[string]string{}}
	s.Sets[serviceNodePorts] = nft.Set{Map: true, Type: "inet_proto . inet_service : verdict", Elements: map[string]string{}}
	// The endpoints of Services that treat them alike. That they are elements, and not rules of each
	// Service, lets one change at the same cost among many: the kernel follows every map to all
	// chains when a rule changes, or where an element leads.
	for _, proto := range []string{"tcp", "udp", "sctp"} {
		for set, key := range map[string]string{serviceIPs: address + " . inet_service", serviceNodePorts: "inet_service"} {
			s.Sets[endpointsOf(set, proto)] = nft.Set{
				Map: true, Elements: map[string]string{},
				Type:   fmt.Sprintf("%s . integer : %s . inet_service", key, address),
				TypeOf: fmt.Sprintf("%s . numgen random mod 65536 : %s", frontendOf(set, proto, ip), frontendOf(serviceIPs, proto, ip)),
			}
		}
	}
	s.Sets["nodeport-rejects"] = nft.Set{Type: "inet_proto . inet_service", Elements: map[string]string{}}
	s.Sets["external-rejects"] = nft.Set{Type: address + " . inet_proto . inet_service", Elements: map[string]string{}}
	s.Sets["balancer-ips"] = nft.Set{Type: address, Elements: map[string]string{}}

	s.Chains["services"] = nft.Chain{Rules: []string{
		fmt.Sprintf("%s daddr . meta l4proto . th dport vmap @%s", ip, serviceIPs),
		// Every address of the machine, but not loopback: a packet with a loopback
		// address must not leave the machine.
		fmt.Sprintf("fib daddr type local %s daddr != %s meta l4proto . th dport vmap @%s", ip, loopback, serviceNodePorts),
	}}
	hook := func(kind knftables.BaseChainType, at knftables.BaseChainHook, priority knftables.BaseChainPriority) *nft.Hook {
		return &nft.Hook{Type: kind, Hook: at, Priority: priority}
	}
	s.Chains["nat-prerouting"] = nft.Chain{Hook: hook(knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority), Rules: []string{"jump services"}}
	// Priority dstnat by its number: nft has the name for prerouting only.
	s.Chains["nat-output"] = nft.Chain{Hook: hook(knftables.NATType, knftables.OutputHook, "-100"), Rules: []string{"jump services"}}

	// From outside to an endpoint outside, say another machine's own address: the answer must
	// come back through here. What others have translated is not in the set.
	s.Sets["outside-endpoints"] = nft.Set{Type: address + " . inet_proto . inet_service", Elements: map[string]string{}}
	s.Chains["nat-outside"] = nft.Chain{Hook: hook(knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority), Rules: []string{
		fmt.Sprintf("ct status dnat %s saddr != %s %s daddr . meta l4proto . th dport @outside-endpoints masquerade fully-random", ip, self.ClusterCIDR.Masked(), ip),
	}}

	// A packet that still has a service address after the look-up goes to no
	// endpoint: there is none, or no such Service, or no such port.
	s.Chains["refuse"] = nft.Chain{Rules: []string{"meta l4proto tcp reject with tcp reset", "reject"}}
	refuse := fmt.Sprintf("%s daddr %s %s daddr != %s goto refuse", ip, self.ServiceCIDR.Masked(), ip, self.DNS)
	// Nor does one with a load balancer's address, which would leave the machine again.
	balancer := fmt.Sprintf("%s daddr @balancer-ips goto refuse", ip)
	// Nor does one with an external address of a Service without endpoints. The address may be the
	// machine's own, whose connections to itself go on.
	external := fmt.Sprintf("ct state new %s daddr . meta l4proto . th dport @external-rejects goto refuse", ip)
	forward := []string{refuse, balancer, external}
	if ip == knftables.IPv6Family {
		// A neighbour that checks whether the address is still here is answered by package announce.
		forward = []string{refuse, "ip6 daddr @balancer-ips icmpv6 type nd-neighbor-solicit drop", balancer, external}
	}
	s.Chains["filter-forward"] = nft.Chain{Hook: hook(knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority), Rules: forward}
	s.Chains["filter-output"] = nft.Chain{Hook: hook(knftables.FilterType, knftables.OutputHook, knftables.FilterPriority), Rules: []string{refuse, balancer, external}}
	s.Chains["filter-input"] = nft.Chain{Hook: hook(knftables.FilterType, knftables.InputHook, knftables.FilterPriority), Rules: []string{
		"ct state new meta l4proto . th dport @nodeport-rejects goto refuse",
		external,
	}}
	return s
}
