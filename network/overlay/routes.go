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
		for _, cidr := range p.PodCIDRs {
			keep[cidr.Masked().String()] = p.Alive
		}
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

// Routes lists the routes of the main table, of both IP families, that carry our mark.
func Routes(mark netlink.RouteProtocol) ([]netlink.Route, error) {
	var out []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := Dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Protocol: mark}, netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range all { // a kernel without IPv6 answers with IPv4 once more
			if r.Dst != nil && (r.Dst.IP.To4() == nil) == (family == netlink.FAMILY_V6) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func (o *Overlay) unroute(p Peer) error {
	var errs []error
	for _, cidr := range p.PodCIDRs {
		if o.cfg.own(cidr).IsValid() {
			errs = append(errs, o.unrouteTo(cidr))
		}
	}
	return errors.Join(errs...)
}

func (o *Overlay) unrouteTo(cidr netip.Prefix) error {
	// Scope "nowhere" matches a route of any scope, which differs between the backends.
	err := netlink.RouteDel(&netlink.Route{Dst: ipNet(cidr), Scope: netlink.SCOPE_NOWHERE, Protocol: PeerRoutes, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %s: %w", cidr, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
