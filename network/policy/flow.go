package policy

import (
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
}

// MatchConntrackFlow is netlink's filter: true deletes the connection.
func (d disallowed) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	from, ok1 := netip.AddrFromSlice(c.Forward.SrcIP)
	to, ok2 := netip.AddrFromSlice(c.Reverse.SrcIP) // where it went after translation
	if !ok1 || !ok2 || d.machine[from.Unmap()] {
		return false
	}
	f := flow{from: from.Unmap(), to: to.Unmap(), port: c.Reverse.SrcPort}
	switch c.Forward.Protocol {
	case unix.IPPROTO_TCP:
		f.proto = "tcp"
	case unix.IPPROTO_UDP:
		f.proto = "udp"
	case unix.IPPROTO_SCTP:
		f.proto = "sctp"
	default:
		f.port = 0
	}
	return !d.allows(f)
}
