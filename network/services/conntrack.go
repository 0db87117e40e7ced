package services

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// staleFlows matches tracked flows that the new table would not have made and
// that would not end by themselves. TCP to an endpoint that merely left its Service
// is not among them: it may finish while its pod terminates.
type staleFlows struct {
	udp     map[frontend]map[netip.AddrPort]struct{}
	oldUDP  map[frontend]map[netip.AddrPort]struct{}
	newDead map[netip.Addr]struct{} // whatever goes to these hangs until its timeout
}

// stale returns what the step from old to new leaves behind, nil if nothing.
func stale(old, new table) *staleFlows {
	s := &staleFlows{udp: new.udp, oldUDP: old.udp, newDead: map[netip.Addr]struct{}{}}
	for a := range new.dead {
		if _, known := old.dead[a]; !known {
			s.newDead[a] = struct{}{}
		}
	}
	if len(s.newDead) > 0 || lost(old.udp, new.udp) {
		return s
	}
	return nil
}

// lost tells whether a UDP frontend has lost an endpoint, is gone, or has got its first
// ones (flows that went nowhere would keep going there).
func lost(old, new map[frontend]map[netip.AddrPort]struct{}) bool {
	for f, was := range old {
		is, ok := new[f]
		if !ok {
			return true
		}
		for at := range was {
			if _, ok := is[at]; !ok {
				return true
			}
		}
	}
	for f, is := range new {
		if len(is) > 0 && len(old[f]) == 0 {
			return true
		}
	}
	return false
}

// MatchConntrackFlow is netlink's filter: true deletes the flow.
func (s *staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	from, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 {
		return false
	}
	to, from = to.Unmap(), from.Unmap()
	if _, dead := s.newDead[from]; dead && to != from { // translated, so by a Service
		return true
	}
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	f := frontend{corev1.ProtocolUDP, to, flow.Forward.DstPort}
	endpoints, now := s.udp[f]
	_, before := s.oldUDP[f]
	if !now && !before && to != from { // a NodePort, unless it was not translated at all
		f.addr = netip.Addr{}
		endpoints, now = s.udp[f]
		_, before = s.oldUDP[f]
	}
	if !now {
		return before
	}
	_, good := endpoints[netip.AddrPortFrom(from, flow.Reverse.SrcPort)]
	return !good
}
