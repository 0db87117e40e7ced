package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/hostports"
	"github.com/rundigitalplatform/rookery/network/ipam"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/network/sysctl"
)

// anchorDevice is a bridge without ports (every kernel that runs containers has
// bridges, not every one has dummies) that holds the addresses of the peer itself.
const anchorDevice = "rookery0"

// localRoutes marks the routes that are not towards peers ("proto 83").
const localRoutes netlink.RouteProtocol = 83

// lastResort is the metric of the route that refuses what no other takes.
const lastResort = 4096

func (n *Network) setup(ctx context.Context) error {
	var err error
	var ranges []netip.Prefix
	for _, f := range n.cfg.Families {
		ranges = append(ranges, f.PodCIDR)
	}
	if n.pool, err = ipam.Open(n.ipamPath(), ranges...); err != nil {
		return err
	}
	if n.ports, err = hostports.Open(n.hostPortsPath(), n.reserved()); err != nil {
		return err
	}
	for _, f := range n.cfg.Families {
		if err := sysctl.Forward(f.Table() == knftables.IPv6Family); err != nil {
			return err
		}
	}
	anchor, err := n.anchor()
	if err != nil {
		return err
	}
	if err := n.localRoutes(anchor); err != nil {
		return err
	}
	// A device of another backend would keep its routes.
	for kind, device := range map[string]string{"wireguard": overlay.WireGuardDevice, "vxlan": overlay.VXLANDevice} {
		if kind != n.cfg.Backend {
			if err := overlay.DeleteLink(device); err != nil {
				return err
			}
		}
	}
	n.tables = map[knftables.Family]*nft.Table{}
	for _, f := range n.cfg.Families {
		table, err := openTable(f.Table(), n.log, podsSection, ServicesSection, PoliciesSection)
		if err != nil {
			return err
		}
		n.tables[f.Table()] = table
	}
	if n.guard, err = nft.NewGuard(n.log, slices.Collect(maps.Values(n.tables))...); err != nil {
		return err
	}
	segments, err := segmentsOf(n.cfg.Address, n.cfg.Backend)
	if err != nil {
		return err
	}
	n.heard.Store(&segments)
	if err := n.syncPods(ctx); err != nil {
		return err
	}
	o, mtu, err := n.open(n.cfg.Backend)
	if err != nil {
		return err
	}
	n.overlayMu.Lock()
	n.overlay, n.backend = o, n.cfg.Backend
	n.overlayMu.Unlock()
	n.mtu.Store(int32(mtu))
	return nil
}

func (n *Network) reserved() map[string][]hostports.Port {
	out := map[string][]hostports.Port{}
	for what, port := range n.cfg.Reserved {
		for _, proto := range []string{"tcp", "udp"} {
			out[what] = append(out[what], hostports.Port{Proto: proto, Host: port})
		}
	}
	return out
}

// anchor makes the bridge with exactly the peer's own and the DNS addresses.
func (n *Network) anchor() (netlink.Link, error) {
	link, err := netlink.LinkByName(anchorDevice)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: anchorDevice, TxQLen: -1}}); err != nil {
			return nil, fmt.Errorf("create device %s: %w; does the kernel have bridge?", anchorDevice, err)
		}
		link, err = netlink.LinkByName(anchorDevice)
	}
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", anchorDevice, err)
	}
	if err := sysctl.Device(anchorDevice, n.cfg.ipv6()); err != nil {
		return nil, err
	}
	have, err := overlay.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", anchorDevice, err)
	}
	var want []netip.Addr
	for _, f := range n.cfg.Families {
		want = append(want, f.Own(), f.DNS)
	}
	for _, a := range have {
		if got, ok := netip.AddrFromSlice(a.IP); ok && slices.Contains(want, got.Unmap()) {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return nil, fmt.Errorf("remove old address %s: %w", a.IP, err)
		}
	}
	for _, addr := range want {
		if err := netlink.AddrReplace(link, address(addr)); err != nil {
			return nil, fmt.Errorf("set address %s: %w", addr, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", anchorDevice, err)
	}
	return link, nil
}

// address is one of ours for a device: nobody else on it could have it, so nobody is
// asked (RFC 4862, duplicate address detection), and it can be used at once.
func address(addr netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: host(addr)}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// localRoutes gives the machine itself a way to Services (they are translated
// before the packet would leave by it; without it a machine that has no default
// route could not even try), and refuses what is the cluster's but has no peer or
// pod behind it, so that it does not leave by the default route.
func (n *Network) localRoutes(anchor netlink.Link) error {
	for _, f := range n.cfg.Families {
		service := netlink.Route{
			LinkIndex: anchor.Attrs().Index, Dst: prefix(f.ServiceCIDR), Src: f.Own().AsSlice(),
			Scope: netlink.SCOPE_LINK, Protocol: localRoutes,
		}
		refuse := netlink.Route{
			Dst: prefix(f.ClusterCIDR), Type: unix.RTN_UNREACHABLE, Priority: lastResort, Protocol: localRoutes,
		}
		for _, r := range []netlink.Route{service, refuse} {
			if err := netlink.RouteReplace(&r); err != nil {
				return fmt.Errorf("route %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

func host(a netip.Addr) *net.IPNet { return prefix(netip.PrefixFrom(a, a.BitLen())) }

func prefix(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
