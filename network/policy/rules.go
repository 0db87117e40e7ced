package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/refused"
)

// rules renders the model; nothing at all where no pod of this peer is isolated, so
// that who uses no policies pays nothing for them.
//
// Egress and ingress have base chains of their own: what one of them accepts, the other
// still sees. Both come after the refusal of Services without endpoints.
func (m model) rules() nft.State {
	s := nft.NewState()
	if len(m.isolated[ingress])+len(m.isolated[egress]) == 0 {
		return s
	}
	hook := func(at knftables.BaseChainHook, priority knftables.BaseChainPriority, rules ...string) nft.Chain {
		return nft.Chain{Hook: &nft.Hook{Type: knftables.FilterType, Hook: at, Priority: priority}, Rules: rules}
	}
	const known = "ct state established,related accept"
	s.Chains["policy-egress-forward"] = hook(knftables.ForwardHook, "1", known, "jump policy-strays", m.ip("saddr vmap @policy-egress"))
	s.Chains["policy-egress-input"] = hook(knftables.InputHook, "1", append(m.exempt(), known,
		m.ip(fmt.Sprintf("daddr %s meta l4proto { tcp, udp } th dport 53 accept", m.dns)), m.ip("saddr vmap @policy-egress"))...)
	s.Chains["policy-output"] = hook(knftables.OutputHook, "1", known, "jump policy-strays") // of the machine to its pods
	s.Chains["policy-ingress-forward"] = hook(knftables.ForwardHook, "2", known, m.ip("daddr vmap @policy-ingress"))

	// A connection that was ended because it is not allowed any more must not come back
	// by a packet from its middle, least of all by one of the end that may talk.
	s.Chains["policy-strays"] = nft.Chain{Rules: []string{
		"meta l4proto != tcp return",
		"ct state != new return",
		"tcp flags & (fin | syn | rst | ack) == syn return",
		m.ip("saddr @policy-pods reject with tcp reset"),
		m.ip("daddr @policy-pods reject with tcp reset"),
	}}
	icmp := map[knftables.Family]string{knftables.IPv4Family: "icmp", knftables.IPv6Family: "icmpv6"}[m.family]
	pods := map[string]string{}
	for _, dir := range []direction{ingress, egress} {
		dir.reason().Add(s, m.family)
		s.Chains["policy-refuse-"+string(dir)] = nft.Chain{Rules: append(dir.reason().Rules(m.family),
			"meta l4proto tcp reject with tcp reset", "reject with "+icmp+" admin-prohibited")}
		elements := map[string]string{}
		for addr, sides := range m.isolated[dir] {
			chain := fmt.Sprintf("policy-%s-%s", dir, nft.Name(addr))
			elements[addr.String()], pods[addr.String()] = "goto "+chain, ""
			s.Chains[chain] = nft.Chain{Rules: m.podRules(addr, dir, sides)}
			for _, side := range sides {
				side.write(m.family, s)
			}
		}
		s.Sets["policy-"+string(dir)] = nft.Set{Map: true, Type: nft.AddressType(m.family) + " : verdict", Elements: elements}
	}
	s.Sets["policy-pods"] = nft.Set{Type: nft.AddressType(m.family), Elements: pods}
	return s
}

func (d direction) reason() refused.Reason {
	if d == ingress {
		return refused.Ingress
	}
	return refused.Egress
}

// ip begins a match of the network header.
func (m model) ip(match string) string { return string(m.family) + " " + match }

// exempt is what a pod and its machine cannot do without, whatever the policies: IPv6 finds
// out by ICMP whether a neighbour is still there (RFC 4861).
func (m model) exempt() []string {
	if m.family == knftables.IPv4Family {
		return nil
	}
	return []string{"icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept"}
}

func (m model) podRules(addr netip.Addr, dir direction, sides []*side) []string {
	rules := []string{fmt.Sprintf("%s %s accept", otherEnd(m.family, dir), addr)} // a pod reaches itself
	for _, s := range sides {
		rules = append(rules, "jump policy-"+s.name)
	}
	return append(rules, "goto policy-refuse-"+string(dir))
}

// otherEnd is the address of who is not selected.
func otherEnd(family knftables.Family, dir direction) string {
	if dir == ingress {
		return string(family) + " saddr"
	}
	return string(family) + " daddr"
}

func (s *side) write(family knftables.Family, to nft.State) {
	chain := "policy-" + s.name
	if _, done := to.Chains[chain]; done {
		return
	}
	var rules []string
	for i, a := range s.allows {
		for _, peer := range s.peers(family, to, i, a) {
			for _, port := range s.ports(family, to, i, a) {
				rules = append(rules, strings.Join(strings.Fields(peer+" "+port+" accept"), " "))
			}
		}
	}
	to.Chains[chain] = nft.Chain{Rules: rules}
}

// peers are the matches of whom the rule lets through; "" is everybody.
func (s *side) peers(family knftables.Family, to nft.State, i int, a allow) (out []string) {
	if a.everyone {
		return []string{""}
	}
	other := otherEnd(family, s.dir)
	if a.selected {
		set := fmt.Sprintf("policy-peers-%s-%d", s.name, i)
		elements := map[string]string{}
		for addr := range a.pods {
			elements[addr.String()] = ""
		}
		to.Sets[set] = nft.Set{Type: nft.AddressType(family), Elements: elements}
		out = append(out, other+" @"+set)
	}
	for _, b := range a.blocks {
		match := ""
		if b.in.Bits() > 0 { // nft takes a match of everything for none
			match = other + " " + b.in.String()
		}
		if len(b.except) > 0 {
			var except []string
			for _, p := range b.except {
				except = append(except, p.String())
			}
			match += fmt.Sprintf(" %s != { %s }", other, strings.Join(except, " , "))
		}
		out = append(out, match)
	}
	return out
}

// ports are the matches of the ports that the rule lets through; "" is every one.
func (s *side) ports(family knftables.Family, to nft.State, i int, a allow) (out []string) {
	if a.everyPort {
		return []string{""}
	}
	byProto := map[string][]portRange{}
	for _, r := range a.ports {
		byProto[r.proto] = append(byProto[r.proto], r)
	}
	for _, proto := range slices.Sorted(maps.Keys(byProto)) {
		match := "meta l4proto " + proto
		if ranges := merged(byProto[proto]); len(ranges) > 0 {
			match += fmt.Sprintf(" th dport { %s }", strings.Join(ranges, " , "))
		}
		out = append(out, match)
	}
	if a.named {
		set := fmt.Sprintf("policy-ports-%s-%d", s.name, i)
		elements := map[string]string{}
		for t := range a.targets {
			elements[fmt.Sprintf("%s . %s . %d", t.addr, t.proto, t.port)] = ""
		}
		to.Sets[set] = nft.Set{Type: nft.AddressType(family) + " . inet_proto . inet_service", Elements: elements}
		out = append(out, string(family)+" daddr . meta l4proto . th dport @"+set)
	}
	return out
}

// merged writes ranges of one protocol such that none touch, as nft wants them; none at
// all means every port.
func merged(ranges []portRange) (out []string) {
	ranges = slices.SortedFunc(slices.Values(ranges), func(a, b portRange) int { return int(a.first) - int(b.first) })
	if ranges[0].first == 0 {
		return nil
	}
	joined := ranges[:1]
	for _, r := range ranges[1:] {
		if last := &joined[len(joined)-1]; int(r.first) <= int(last.last)+1 {
			last.last = max(last.last, r.last)
		} else {
			joined = append(joined, r)
		}
	}
	for _, r := range joined {
		if r.first == r.last {
			out = append(out, fmt.Sprint(r.first))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", r.first, r.last))
		}
	}
	return out
}
