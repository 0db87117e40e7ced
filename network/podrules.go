package network

import (
	"context"
	"fmt"
	"net/netip"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/hostports"
	"github.com/rundigitalplatform/rookery/network/nft"
)

// Sections of the table.
const (
	podsSection     = "pods"
	ServicesSection = "services" // for [Network.Apply]
	PoliciesSection = "policies" // for [Network.Apply]
)

// syncPods brings the pods' rules to the addresses that are allocated now. Of
// several calls at once, the first to write writes for all.
func (n *Network) syncPods(ctx context.Context) error {
	mine := n.podsWanted.Add(1)
	n.podsMu.Lock()
	defer n.podsMu.Unlock()
	if n.podsApplied >= mine {
		return nil
	}
	generation := n.podsWanted.Load()
	addrs, ports := n.pool.All(), n.ports.All()
	if err := n.table.Set(ctx, podsSection, podRules(n.cfg.Families[0], addrs, ports)); err != nil {
		return err
	}
	// Only now: a flow that is forgotten earlier would be made again by the old rules.
	if err := hostports.Forget(n.portsApplied, ports, addrs); err != nil {
		n.log.Warn("stale connections could not be ended", "error", err)
	}
	n.portsApplied = ports
	n.podsApplied = generation
	return nil
}

// podRules are the rules that do not depend on Services.
func podRules(f Family, pods map[string]netip.Addr, ports map[string][]hostports.Port) nft.State {
	s := nft.NewState()
	sources, hairpins := map[string]string{}, map[string]string{}
	for uid, addr := range pods {
		sources[deviceName(uid)+" . "+addr.String()] = ""
		hairpins[addr.String()+" . "+addr.String()] = ""
	}
	s.Sets["pod-addresses"] = nft.Set{Type: "ifname . ipv4_addr", Elements: sources}
	s.Sets["hairpins"] = nft.Set{Type: "ipv4_addr . ipv4_addr", Elements: hairpins}
	// Before connection tracking, so that a forged packet costs nothing.
	s.Chains["pod-sources"] = nft.Chain{
		Hook: &nft.Hook{Type: knftables.FilterType, Hook: knftables.PreroutingHook, Priority: "-310"},
		Rules: []string{
			fmt.Sprintf(`iifname "%s*" iifname . ip saddr != @pod-addresses drop`, devicePrefix),
			// What the machine serves on its loopback is not for pods, whatever route_localnet allows.
			fmt.Sprintf(`iifname "%s*" ip daddr 127.0.0.0/8 drop`, devicePrefix),
		},
	}
	own := f.Own()
	inside := fmt.Sprintf("{ %s, %s }", f.ClusterCIDR.Masked(), f.ServiceCIDR.Masked())
	s.Chains["nat-postrouting"] = nft.Chain{
		Hook: &nft.Hook{Type: knftables.NATType, Hook: knftables.PostroutingHook, Priority: knftables.SNATPriority},
		Rules: []string{
			// Over loopback nothing leaves, and the loopback address is no good as a source.
			`oifname "lo" return`,
			// A host port that was asked for under the loopback address.
			fmt.Sprintf("ct status dnat ip saddr 127.0.0.0/8 snat to %s fully-random", own),
			// A pod that was sent to itself must not see its own address as the client's.
			fmt.Sprintf("ct status dnat ip saddr . ip daddr @hairpins snat to %s fully-random", own),
			// From outside to another peer's pod (a NodePort): the answer must come back through here.
			fmt.Sprintf("ip saddr != %s ip daddr %s ip daddr != %s snat to %s fully-random",
				f.ClusterCIDR.Masked(), f.ClusterCIDR.Masked(), f.PodCIDR.Masked(), own),
			// From outside to outside, by a NodePort whose endpoint is another machine itself.
			fmt.Sprintf("ct status dnat ip saddr != %s ip daddr != %s masquerade fully-random", f.ClusterCIDR.Masked(), inside),
			// Pods, and the peer under its pod network address, out of the cluster.
			fmt.Sprintf("ip saddr %s ip daddr != %s masquerade fully-random", f.PodCIDR.Masked(), inside),
		},
	}
	hostports.Rules(s, ports, pods, f.ServiceCIDR)
	return s
}
