package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network/sysctl"
)

const (
	vxlanID = 4282 // ours alone: 42 as in 10.42.0.0/16
	// VXLANPort is the UDP port that IANA has for it.
	VXLANPort = 4789
)

// vxlan needs neither multicast nor learning: a peer's hardware address follows from
// its first pod network address, and every entry is written by us.
type vxlan struct {
	cfg  Config
	link netlink.Link
}

func (v *vxlan) up() error {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: VXLANDevice, MTU: v.cfg.MTU, HardwareAddr: hardwareAddr(v.cfg.Own[0]), TxQLen: -1},
		VxlanId:   vxlanID, Port: VXLANPort, SrcAddr: v.cfg.Address.AsSlice(),
	}
	link, err := netlink.LinkByName(VXLANDevice)
	if err == nil {
		have, ok := link.(*netlink.Vxlan)
		if ok && have.VxlanId == vxlanID && have.Port == VXLANPort && have.SrcAddr.Equal(want.SrcAddr) &&
			bytes.Equal(have.HardwareAddr, want.HardwareAddr) {
			v.link = link
			return errors.Join(netlink.LinkSetMTU(link, v.cfg.MTU), sysctl.Device(VXLANDevice, v.cfg.ipv6()), netlink.LinkSetUp(link))
		}
		if err := netlink.LinkDel(link); err != nil { // this machine's address has changed
			return fmt.Errorf("replace device %s: %w", VXLANDevice, err)
		}
	} else if !errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("find device %s: %w", VXLANDevice, err)
	}
	if err := netlink.LinkAdd(want); err != nil {
		return fmt.Errorf("create device %s: %w; does the kernel have vxlan?", VXLANDevice, err)
	}
	if link, err = netlink.LinkByName(VXLANDevice); err != nil {
		return fmt.Errorf("find device %s: %w", VXLANDevice, err)
	}
	v.link = link
	if err := sysctl.Device(VXLANDevice, v.cfg.ipv6()); err != nil {
		return err
	}
	return netlink.LinkSetUp(v.link)
}

// move makes the device anew: it sends from the address that it was made with.
func (v *vxlan) move(address netip.Addr, mtu int) error {
	v.cfg.Address, v.cfg.MTU = address, mtu
	return v.up()
}

// hardwareAddr is a locally administered address with what tells peers apart in a pod
// network address: all of an IPv4 address, the end of an IPv6 range (/64).
func hardwareAddr(own netip.Addr) net.HardwareAddr {
	b := own.AsSlice()
	if own.Is6() {
		b = b[4:8]
	}
	return append(net.HardwareAddr{0x0a, 0x58}, b...)
}

func peerHardwareAddr(p Peer) net.HardwareAddr { return hardwareAddr(first(p.PodCIDRs[0])) }

// first is the address of a pod range that is the peer's own.
func first(cidr netip.Prefix) netip.Addr { return cidr.Masked().Addr().Next() }

// gateway is the peer's next hop in the family of a range of it. That of IPv6 is a link
// local address with the hardware address in it, as the kernel wants a global one to be
// where the route leads that is there already, which may be another backend's.
func gateway(p Peer, cidr netip.Prefix) netip.Addr {
	if cidr.Addr().Is4() {
		return first(cidr)
	}
	a := netip.MustParseAddr("fe80::").As16()
	copy(a[10:], peerHardwareAddr(p))
	return netip.AddrFrom16(a)
}

// entries are the neighbour entries of the peer's next hops, and the forwarding entry that
// says behind which machine their hardware address is.
func (v *vxlan) entries(p Peer) (all []netlink.Neigh) {
	entry := func(ip netip.Addr) netlink.Neigh {
		return netlink.Neigh{LinkIndex: v.link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip.AsSlice(), HardwareAddr: peerHardwareAddr(p)}
	}
	fdb := entry(p.Endpoint)
	fdb.Family, fdb.Flags = unix.AF_BRIDGE, netlink.NTF_SELF
	all = append(all, fdb)
	for _, cidr := range p.PodCIDRs {
		if v.cfg.own(cidr).IsValid() {
			all = append(all, entry(gateway(p, cidr))) // of the address's family
		}
	}
	return all
}

func (v *vxlan) add(p Peer, _ bool) error {
	if p.Endpoint.Is4() != v.cfg.Address.Is4() {
		return fmt.Errorf("it is known at %s and this machine at %s: the backend vxlan needs both of one IP family", p.Endpoint, v.cfg.Address)
	}
	// Set replaces a unicast entry, so that an endpoint that moved is no special case.
	for _, n := range v.entries(p) {
		if err := netlink.NeighSet(&n); err != nil {
			return fmt.Errorf("write neighbour entry %s: %w", n.IP, err)
		}
	}
	return nil
}

func (v *vxlan) remove(p Peer) error {
	for _, n := range v.entries(p) {
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove neighbour entry %s: %w", n.IP, err)
		}
	}
	return nil
}

func (v *vxlan) prune(keep []Peer) error {
	known := map[string]bool{}
	for _, p := range keep {
		known[peerHardwareAddr(p).String()] = true
	}
	families := []int{unix.AF_BRIDGE, unix.AF_INET}
	if v.cfg.ipv6() {
		families = append(families, unix.AF_INET6)
	}
	for _, family := range families {
		entries, err := Dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(v.link.Attrs().Index, family) })
		if err != nil {
			return fmt.Errorf("list neighbour entries: %w", err)
		}
		for _, n := range entries {
			if n.State&netlink.NUD_PERMANENT == 0 || len(n.HardwareAddr) == 0 || known[n.HardwareAddr.String()] {
				continue
			}
			if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove old neighbour entry: %w", err)
			}
		}
	}
	return nil
}

func (v *vxlan) route(p Peer, cidr netip.Prefix) (netlink.Route, error) {
	return netlink.Route{LinkIndex: v.link.Attrs().Index, Gw: gateway(p, cidr).AsSlice(), Flags: int(netlink.FLAG_ONLINK)}, nil
}

func (v *vxlan) gone() <-chan struct{} { return nil }

func (v *vxlan) close() error { return nil } // forwards on without us

func (v *vxlan) end() error { return DeleteLink(VXLANDevice) }
