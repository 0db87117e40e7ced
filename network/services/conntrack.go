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
	udp     map[frontend]endpoints
	oldUDP  map[frontend]endpoints  // of those that changed
	newDead map[netip.Addr]struct{} // whatever goes to these hangs until its timeout
}

// stale returns what a change leaves behind, nil if nothing: was is what it changed of the UDP
// frontends, which are is now.
func stale(was, is map[frontend]endpoints, c change) *staleFlows {
	if len(c.dead) == 0 && !lost(was, c.udp) {
		return nil
	}
	return &staleFlows{udp: is, oldUDP: was, newDead: c.dead}
}

// lost tells whether a UDP frontend has lost an endpoint, is gone, or has got its first
// ones (flows that went nowhere would keep going there).
func lost(was map[frontend]endpoints, changed changes[frontend, endpoints]) bool {
	for f, is := range changed {
		old, known := was[f]
		if is == nil {
			if known {
				return true
			}
			continue
		}
		for at := range old {
			if _, ok := (*is)[at]; !ok {
				return true
			}
		}
		if len(*is) > 0 && len(old) == 0 {
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
