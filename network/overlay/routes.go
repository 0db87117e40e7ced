package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Dump asks for a full list and asks again when the list changed meanwhile.
func Dump[T any](list func() ([]T, error)) ([]T, error) {
	var out []T
	var err error
	for range 10 { // changes come in bursts; ten whole lists outlast one
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

// adopt removes what an earlier run left for peers that are not wanted now.
func (o *Overlay) adopt(peers []Peer) error {
	keep := map[string]bool{}
	for _, p := range peers {
		keep[p.PodCIDRs[0].Masked().String()] = p.Alive
	}
	routes, err := Routes(PeerRoutes)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if keep[r.Dst.String()] {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove old route %s: %w", r.Dst, err)
		}
	}
	return o.b.prune(peers)
}

// Routes lists the routes of the main table that carry our mark.
func Routes(mark netlink.RouteProtocol) ([]netlink.Route, error) {
	all, err := Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: mark}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netlink.Route
	for _, r := range all {
		if r.Dst != nil {
			out = append(out, r)
		}
	}
	return out, nil
}

func (o *Overlay) unroute(p Peer) error {
	// Scope "nowhere" matches a route of any scope, which differs between the backends.
	err := netlink.RouteDel(&netlink.Route{Dst: ipNet(p.PodCIDRs[0]), Scope: netlink.SCOPE_NOWHERE, Protocol: PeerRoutes, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s: %w", p.PodCIDRs[0], err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
