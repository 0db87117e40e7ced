package network

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/hostports"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/network/refused"
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
	pods, ports := n.pool.All(), n.ports.All()
	for i, f := range n.cfg.Families {
		addrs := map[string]netip.Addr{}
		for uid, all := range pods {
			addrs[uid] = all[i]
		}
		if err := n.tables[f.Table()].Set(ctx, podsSection, podRules(f, addrs, ports, n.segments())); err != nil {
			return err
		}
		// Only now: a flow that is forgotten earlier would be made again by the old rules.
		if err := hostports.Forget(f.Table(), n.portsApplied, ports, addrs); err != nil {
			n.log.Warn("stale connections could not be ended", "error", err)
		}
	}
	n.portsApplied = ports
	n.podsApplied = generation
	n.sweepSoon()
	return nil
}

// podRules are the rules of one family that do not depend on Services. segments are the devices
// beside those of overlays by which other peers' pods are heard.
func podRules(f Family, pods map[string]netip.Addr, ports map[string][]hostports.Port, segments []string) nft.State {
	s := nft.NewState()
	sources, hairpins := map[string]string{}, map[string]string{}
	for uid, addr := range pods {
		sources[deviceName(uid)+" . "+addr.String()] = ""
		hairpins[addr.String()+" . "+addr.String()] = ""
	}
	ip, addrType := f.Table(), nft.AddressType(f.Table())
	s.Sets["pod-addresses"] = nft.Set{Type: "ifname . " + addrType, Elements: sources}
	s.Sets["hairpins"] = nft.Set{Type: addrType + " . " + addrType, Elements: hairpins}
	// Before connection tracking, so that a forged packet costs nothing.
	s.Chains["pod-sources"] = nft.Chain{
		Hook:  &nft.Hook{Type: knftables.FilterType, Hook: knftables.PreroutingHook, Priority: "-310"},
		Rules: append(podSources(ip), outsideSources(f, segments)),
	}
	refused.Source.Add(s, ip)
	s.Chains["pod-forged"] = nft.Chain{Rules: append(refused.Source.Rules(ip), "drop")}
	// A path may carry less than the pods' devices: TCP is told at its beginning, whatever becomes
	// of the messages that tell it later. Both directions' routes count.
	s.Chains["pod-segments"] = nft.Chain{
		Hook: &nft.Hook{Type: knftables.FilterType, Hook: knftables.ForwardHook, Priority: knftables.ManglePriority},
		Rules: []string{
			fmt.Sprintf("tcp flags & (syn|rst) == syn %s saddr %s tcp option maxseg size set rt mtu", ip, f.ClusterCIDR.Masked()),
			fmt.Sprintf("tcp flags & (syn|rst) == syn %s daddr %s tcp option maxseg size set rt mtu", ip, f.ClusterCIDR.Masked()),
		},
	}
	own, cluster := f.Own(), f.ClusterCIDR.Masked()
	inside := fmt.Sprintf("{ %s, %s }", cluster, f.ServiceCIDR.Masked())
	post := []string{
		// Over loopback nothing leaves, and the loopback address is no good as a source.
		`oifname "lo" return`,
	}
	if ip == knftables.IPv4Family {
		// A host port that was asked for under the loopback address.
		post = append(post, fmt.Sprintf("ct status dnat ip saddr 127.0.0.0/8 snat to %s fully-random", own))
	}
	s.Chains["nat-postrouting"] = nft.Chain{
		Hook: &nft.Hook{Type: knftables.NATType, Hook: knftables.PostroutingHook, Priority: knftables.SNATPriority},
		Rules: append(post,
			// A pod that was sent to itself must not see its own address as the client's.
			fmt.Sprintf("ct status dnat %s saddr . %s daddr @hairpins snat to %s fully-random", ip, ip, own),
			// From outside to another peer's pod (a NodePort): the answer must come back through here.
			fmt.Sprintf("%s saddr != %s %s daddr %s %s daddr != %s snat to %s fully-random", ip, cluster, ip, cluster, ip, f.PodCIDR.Masked(), own),
			// Pods, and the peer under its pod network address, out of the cluster.
			fmt.Sprintf("%s saddr %s %s daddr != %s masquerade fully-random", ip, f.PodCIDR.Masked(), ip, inside),
		),
	}
	hostports.Rules(s, ip, ports, pods, f.ServiceCIDR)
	return s
}

// outsideSources drops what comes from outside with an address of the cluster's own: it would
// pass for a pod with policies and with the cluster DNS. Both overlays' devices may be heard, as
// one is still listened to after a change to the other.
func outsideSources(f Family, segments []string) string {
	var devices []string
	for _, d := range append([]string{"lo", anchorDevice, overlay.WireGuardDevice, overlay.VXLANDevice}, segments...) {
		devices = append(devices, strconv.Quote(d))
	}
	return fmt.Sprintf(`iifname != "%s*" iifname != { %s } %s saddr { %s, %s } goto pod-forged`,
		devicePrefix, strings.Join(devices, ", "), f.Table(), f.ClusterCIDR.Masked(), f.ServiceCIDR.Masked())
}

// podSources drop what no pod may send.
func podSources(ip knftables.Family) []string {
	from := fmt.Sprintf(`iifname "%s*"`, devicePrefix)
	// Also the unspecified and link local addresses of IPv6: a pod has none of its own making.
	forged := fmt.Sprintf(`%s iifname . %s saddr != @pod-addresses goto pod-forged`, from, ip)
	if ip == knftables.IPv6Family {
		return []string{
			// Who is at the other end of a pod's device is written, not asked for (RFC 4861), and a
			// pod is nobody's router. What groups its kernel listens to is of no use here either.
			from + " icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect, " +
				"mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } drop",
			forged,
		}
	}
	return []string{
		forged,
		// What the machine serves on its loopback is not for pods, whatever route_localnet allows.
		// (In IPv6 the kernel itself drops ::1 from outside.)
		from + " ip daddr 127.0.0.0/8 drop",
	}
}
