package hostports

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Rules adds to s, of a table of that family, what makes the ports of the pods lead to
// their addresses; nothing if there are none. services is the family's range of Services:
// a peer answers DNS under an address of it, which is no pod's to take.
//
// IPv6 has no way to a pod from the loopback address (IPv4's route_localnet), and what has
// a link local address is not forwarded: under these nothing is published.
//
// The look-up comes after that for Services (one more than their priority), so that
// a port that is both leads to the Service, as with kube-proxy.
func Rules(s nft.State, family knftables.Family, pods map[string][]Port, addrs map[string]netip.Addr, services netip.Prefix) {
	all, one := map[string]string{}, map[string]string{}
	for _, uid := range slices.Sorted(maps.Keys(pods)) {
		addr, ok := addrs[uid]
		if !ok {
			continue
		}
		for _, p := range pods[uid] {
			chain, key := fmt.Sprintf("hostport-%s/%d", p.Proto, p.Host), fmt.Sprintf("%s . %d", p.Proto, p.Host)
			switch {
			case !p.of(addr):
				continue
			case p.everywhere():
				all[key] = "goto " + chain
			default:
				chain += "/" + nft.Name(p.IP)
				one[p.IP.String()+" . "+key] = "goto " + chain
			}
			s.Chains[chain] = nft.Chain{Rules: []string{fmt.Sprintf("meta l4proto %s dnat to %s", p.Proto, netip.AddrPortFrom(addr, p.Container))}}
		}
	}
	if len(all)+len(one) == 0 {
		return
	}
	s.Sets["hostports"] = nft.Set{Map: true, Type: "inet_proto . inet_service : verdict", Elements: all}
	s.Sets["hostport-ips"] = nft.Set{Map: true, Type: nft.AddressType(family) + " . inet_proto . inet_service : verdict", Elements: one}
	not := services.Masked().String()
	if family == knftables.IPv6Family {
		not = fmt.Sprintf("{ %s, ::1, fe80::/10 }", not)
	}
	s.Chains["hostports"] = nft.Chain{Rules: []string{
		fmt.Sprintf("fib daddr type local %s daddr != %s meta l4proto . th dport vmap @hostports", family, not),
		fmt.Sprintf("fib daddr type local %s daddr . meta l4proto . th dport vmap @hostport-ips", family),
	}}
	hook := func(at knftables.BaseChainHook) nft.Chain {
		return nft.Chain{Hook: &nft.Hook{Type: knftables.NATType, Hook: at, Priority: "-99"}, Rules: []string{"jump hostports"}}
	}
	s.Chains["hostports-prerouting"], s.Chains["hostports-output"] = hook(knftables.PreroutingHook), hook(knftables.OutputHook)
}
