package hostports

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/conntrack"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
)

// Forget ends the tracked UDP flows to ports that were published differently before:
// a client that goes on sending would reach the pod that is gone, or nobody. TCP has
// an end of its own. addrs are the pods' addresses of the family. It returns at once if
// nothing of that kind changed.
func Forget(family knftables.Family, before, now map[string][]Port, addrs map[string]netip.Addr) error {
	f := staleUDP{want: targets(family, now, addrs)}
	f.ports = changedPorts(targets(family, before, addrs), f.want)
	if len(f.ports) == 0 {
		return nil
	}
	var err error
	if f.local, err = overlay.LocalAddrs(); err != nil {
		return err
	}
	if _, err = conntrack.Delete(family, f); err != nil {
		return fmt.Errorf("UDP clients of a host port: %w", err)
	}
	return nil
}

// target is where a UDP port leads; the address is zero for all of the machine's.
type target struct {
	addr netip.Addr
	port uint16
}

func targets(family knftables.Family, pods map[string][]Port, addrs map[string]netip.Addr) map[target]netip.AddrPort {
	out := map[target]netip.AddrPort{}
	for uid, ports := range pods {
		for _, p := range ports {
			switch {
			case p.Proto != "udp" || p.IP.IsValid() && nft.FamilyOf(p.IP) != family:
			case p.everywhere():
				out[target{netip.Addr{}, p.Host}] = netip.AddrPortFrom(addrs[uid], p.Container)
			default:
				out[target{p.IP, p.Host}] = netip.AddrPortFrom(addrs[uid], p.Container)
			}
		}
	}
	return out
}

func changedPorts(before, now map[target]netip.AddrPort) map[uint16]bool {
	out := map[uint16]bool{}
	for t, at := range before {
		if now[t] != at {
			out[t.port] = true
		}
	}
	for t, at := range now {
		if before[t] != at {
			out[t.port] = true
		}
	}
	return out
}

// staleUDP is netlink's filter: true deletes the flow.
type staleUDP struct {
	ports map[uint16]bool
	want  map[target]netip.AddrPort
	local map[netip.Addr]bool // addresses of this machine
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleUDP) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, ok1 := netip.AddrFromSlice(flow.Forward.DstIP)
	from, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP)
	if !ok1 || !ok2 || flow.Forward.Protocol != unix.IPPROTO_UDP || !s.ports[flow.Forward.DstPort] || !s.local[to.Unmap()] {
		return false
	}
	want, published := s.want[target{to.Unmap(), flow.Forward.DstPort}]
	if !published {
		want = s.want[target{netip.Addr{}, flow.Forward.DstPort}]
	}
	return netip.AddrPortFrom(from.Unmap(), flow.Reverse.SrcPort) != want
}
