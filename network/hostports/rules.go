package hostports

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Rules adds to s what makes the ports of the pods lead to their addresses; nothing
// if there are none. services is the range of Services: a peer answers DNS under an
// address of it, which is no pod's to take.
//
// The look-up comes after that for Services (one more than their priority), so that
// a port that is both leads to the Service, as with kube-proxy.
func Rules(s nft.State, pods map[string][]Port, addrs map[string]netip.Addr, services netip.Prefix) {
	all, one := map[string]string{}, map[string]string{}
	for _, uid := range slices.Sorted(maps.Keys(pods)) {
		addr, ok := addrs[uid]
		if !ok {
			continue
		}
		for _, p := range pods[uid] {
			chain, key := fmt.Sprintf("hostport-%s/%d", p.Proto, p.Host), fmt.Sprintf("%s . %d", p.Proto, p.Host)
			if p.IP.IsValid() {
				chain += "/" + p.IP.String()
				one[p.IP.String()+" . "+key] = "goto " + chain
			} else {
				all[key] = "goto " + chain
			}
			s.Chains[chain] = nft.Chain{Rules: []string{fmt.Sprintf("meta l4proto %s dnat to %s", p.Proto, netip.AddrPortFrom(addr, p.Container))}}
		}
	}
	if len(all)+len(one) == 0 {
		return
	}
	s.Sets["hostports"] = nft.Set{Map: true, Type: "inet_proto . inet_service : verdict", Elements: all}
	s.Sets["hostport-ips"] = nft.Set{Map: true, Type: "ipv4_addr . inet_proto . inet_service : verdict", Elements: one}
	s.Chains["hostports"] = nft.Chain{Rules: []string{
		fmt.Sprintf("fib daddr type local ip daddr != %s meta l4proto . th dport vmap @hostports", services.Masked()),
		"fib daddr type local ip daddr . meta l4proto . th dport vmap @hostport-ips",
	}}
	hook := func(at knftables.BaseChainHook) nft.Chain {
		return nft.Chain{Hook: &nft.Hook{Type: knftables.NATType, Hook: at, Priority: "-99"}, Rules: []string{"jump hostports"}}
	}
	s.Chains["hostports-prerouting"], s.Chains["hostports-output"] = hook(knftables.PreroutingHook), hook(knftables.OutputHook)
}
