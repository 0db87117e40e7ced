package policy

import (
	"maps"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flow is a connection as the filter sees it: after a Service's address was translated.
type flow struct {
	from, to netip.Addr
	proto    string // "" for one without ports
	port     uint16
}

// allows tells whether a connection may begin, as far as this peer has a say.
func (m model) allows(f flow) bool {
	if f.from == f.to || f.to == m.dns && f.port == 53 && (f.proto == "udp" || f.proto == "tcp") {
		return true
	}
	return allowed(m.isolated[egress], f.from, f.to, f) && allowed(m.isolated[ingress], f.to, f.from, f)
}

// allowed asks the policies of one end whether the other one may be talked to.
func allowed(isolated map[netip.Addr][]*side, end, other netip.Addr, f flow) bool {
	sides, ok := isolated[end]
	if !ok {
		return true
	}
	for _, s := range sides {
		for _, a := range s.allows {
			if a.peer(other) && a.port(f) {
				return true
			}
		}
	}
	return false
}

func (a allow) peer(addr netip.Addr) bool {
	if _, ok := a.pods[addr]; ok || a.everyone {
		return true
	}
	for _, b := range a.blocks {
		if b.contains(addr) {
			return true
		}
	}
	return false
}

func (b block) contains(addr netip.Addr) bool {
	for _, p := range b.except {
		if p.Contains(addr) {
			return false
		}
	}
	return b.in.Contains(addr)
}

func (a allow) port(f flow) bool {
	if a.everyPort {
		return true
	}
	for _, r := range a.ports {
		if r.proto == f.proto && (r.first == 0 || r.first <= f.port && f.port <= r.last) {
			return true
		}
	}
	_, ok := a.targets[target{f.to, f.proto, f.port}]
	return ok
}

// disallowed matches the tracked connections that the model would not let begin.
type disallowed struct {
	model
	machine map[netip.Addr]bool // this machine's own addresses: what comes from them passes
	answers map[tuple]flow      // of what it has matched, by what is matched as well; it grows
}

// under is the same by another model. What that allows has answers that are allowed.
func (d disallowed) under(m model) disallowed {
	d.model = m
	maps.DeleteFunc(d.answers, func(_ tuple, f flow) bool { return m.allows(f) })
	return d
}

// tuple is one direction of a tracked connection.
type tuple struct {
	proto            uint8
	from, to         netip.Addr
	fromPort, toPort uint16
}

func tupleOf(t netlink.IPTuple) (out tuple, ok bool) {
	from, ok1 := netip.AddrFromSlice(t.SrcIP)
	to, ok2 := netip.AddrFromSlice(t.DstIP)
	return tuple{t.Protocol, from.Unmap(), to.Unmap(), t.SrcPort, t.DstPort}, ok1 && ok2
}

// MatchConntrackFlow is netlink's filter: true deletes the connection.
func (d disallowed) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	there, ok1 := tupleOf(c.Forward)
	back, ok2 := tupleOf(c.Reverse) // after translation
	if !ok1 || !ok2 {
		return false
	}
	if _, ok := d.answers[there]; ok {
		return true
	}
	f := flow{from: there.from, to: back.from, port: back.fromPort}
	switch there.proto {
	case unix.IPPROTO_TCP:
		f.proto = "tcp"
	case unix.IPPROTO_UDP:
		f.proto = "udp"
	case unix.IPPROTO_SCTP:
		f.proto = "sctp"
	default:
		f.port = 0
	}
	if d.machine[f.from] || d.allows(f) {
		return false
	}
	if there.proto != unix.IPPROTO_TCP { // the rules know the middle of a TCP connection when they see it
		d.answers[back] = f
	}
	return true
}
