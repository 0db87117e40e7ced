package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network/hostports"
	"github.com/rundigitalplatform/rookery/network/ipam"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
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
	if n.pool, err = ipam.Open(n.ipamPath(), n.cfg.Families[0].PodCIDR); err != nil {
		return err
	}
	if n.ports, err = hostports.Open(n.hostPortsPath(), n.reserved()); err != nil {
		return err
	}
	if err := sysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
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
	kernel, err := newNFT()
	if err != nil {
		return err
	}
	n.table = nft.New(kernel, n.log, podsSection, ServicesSection, PoliciesSection)
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

// anchor makes the bridge with exactly the peer's own and the DNS address.
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
	if err := quiet(anchorDevice); err != nil {
		return nil, err
	}
	have, err := overlay.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", anchorDevice, err)
	}
	want := map[netip.Addr]bool{n.Own(): true, n.cfg.Families[0].DNS: true}
	for _, a := range have {
		if got, ok := netip.AddrFromSlice(a.IP); ok && want[got.Unmap()] {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return nil, fmt.Errorf("remove old address %s: %w", a.IP, err)
		}
	}
	for addr := range want {
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: host(addr)}); err != nil {
			return nil, fmt.Errorf("set address %s: %w", addr, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", anchorDevice, err)
	}
	return link, nil
}

// localRoutes gives the machine itself a way to Services (they are translated
// before the packet would leave by it; without it a machine that has no default
// route could not even try), and refuses what is the cluster's but has no peer or
// pod behind it, so that it does not leave by the default route.
func (n *Network) localRoutes(anchor netlink.Link) error {
	service := netlink.Route{
		LinkIndex: anchor.Attrs().Index, Dst: prefix(n.cfg.Families[0].ServiceCIDR), Src: n.Own().AsSlice(),
		Scope: netlink.SCOPE_LINK, Protocol: localRoutes,
	}
	refuse := netlink.Route{
		Dst: prefix(n.cfg.Families[0].ClusterCIDR), Type: unix.RTN_UNREACHABLE, Priority: lastResort, Protocol: localRoutes,
	}
	for _, r := range []netlink.Route{service, refuse} {
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("route %s: %w", r.Dst, err)
		}
	}
	return nil
}

// quiet keeps IPv6 off a device that has no use for it: its autoconfiguration
// would send packets, and our rules look at IPv4 only.
func quiet(device string) error {
	if _, err := os.Stat("/proc/sys/net/ipv6/conf/" + device); err != nil {
		return nil //nolint:nilerr // a kernel without IPv6 needs no telling
	}
	return sysctl("net/ipv6/conf/"+device+"/disable_ipv6", "1")
}

// sysctl sets a value unless it is that already, so that a read-only /proc/sys is
// fine where the administrator has set it.
func sysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read setting %s: %w", name, err)
	}
	if strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		dotted := strings.ReplaceAll(name, "/", ".")
		return fmt.Errorf("set %s: %w; set it yourself before the start: sysctl -w %s=%s", dotted, err, dotted, value)
	}
	return nil
}

func host(a netip.Addr) *net.IPNet { return prefix(netip.PrefixFrom(a, a.BitLen())) }

func prefix(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
