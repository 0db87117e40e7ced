package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	vxlanID   = 4282 // ours alone: 42 as in 10.42.0.0/16
	vxlanPort = 4789 // IANA
)

// vxlan needs neither multicast nor learning: a peer's hardware address
// follows from its pod network address, and every entry is written by us.
type vxlan struct {
	cfg  Config
	link netlink.Link
}

func (v *vxlan) up() (netlink.Link, error) {
	want := &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: VXLANDevice, MTU: v.cfg.MTU, HardwareAddr: hardwareAddr(v.cfg.Own), TxQLen: -1},
		VxlanId:   vxlanID, Port: vxlanPort, SrcAddr: v.cfg.Address.AsSlice(),
	}
	link, err := netlink.LinkByName(VXLANDevice)
	if err == nil {
		have, ok := link.(*netlink.Vxlan)
		if ok && have.VxlanId == vxlanID && have.Port == vxlanPort && have.SrcAddr.Equal(want.SrcAddr) &&
			bytes.Equal(have.HardwareAddr, want.HardwareAddr) {
			v.link = link
			return link, errors.Join(netlink.LinkSetMTU(link, v.cfg.MTU), netlink.LinkSetUp(link))
		}
		if err := netlink.LinkDel(link); err != nil { // this machine's address has changed
			return nil, fmt.Errorf("replace device %s: %w", VXLANDevice, err)
		}
	} else if !errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("find device %s: %w", VXLANDevice, err)
	}
	if err := netlink.LinkAdd(want); err != nil {
		return nil, fmt.Errorf("create device %s: %w; does the kernel have vxlan?", VXLANDevice, err)
	}
	if v.link, err = netlink.LinkByName(VXLANDevice); err != nil {
		return nil, fmt.Errorf("find device %s: %w", VXLANDevice, err)
	}
	return v.link, netlink.LinkSetUp(v.link)
}

// hardwareAddr is a locally administered address with a pod network address in it.
func hardwareAddr(own netip.Addr) net.HardwareAddr {
	b := own.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

// entries are the neighbour entry of the peer's own address and the forwarding
// entry that says behind which machine its hardware address is.
func (v *vxlan) entries(p Peer) (neigh, fdb *netlink.Neigh) {
	own := p.PodCIDRs[0].Masked().Addr().Next()
	neigh = &netlink.Neigh{LinkIndex: v.link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: own.AsSlice(), HardwareAddr: hardwareAddr(own)}
	fdb = &netlink.Neigh{LinkIndex: v.link.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: p.Endpoint.AsSlice(), HardwareAddr: hardwareAddr(own)}
	return neigh, fdb
}

func (v *vxlan) add(p Peer, _ *Peer) error {
	neigh, fdb := v.entries(p)
	// Set replaces a unicast entry, so that an endpoint that moved is no special case.
	if err := netlink.NeighSet(fdb); err != nil {
		return fmt.Errorf("write forwarding entry: %w", err)
	}
	if err := netlink.NeighSet(neigh); err != nil {
		return fmt.Errorf("write neighbour entry: %w", err)
	}
	return nil
}

func (v *vxlan) remove(p Peer) error {
	neigh, fdb := v.entries(p)
	for _, n := range []*netlink.Neigh{fdb, neigh} {
		if err := netlink.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove neighbour entry: %w", err)
		}
	}
	return nil
}

func (v *vxlan) prune(keep []Peer) error {
	known := map[string]bool{}
	for _, p := range keep {
		known[hardwareAddr(p.PodCIDRs[0].Masked().Addr().Next()).String()] = true
	}
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET} {
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

func (v *vxlan) route(p Peer) netlink.Route {
	return netlink.Route{LinkIndex: v.link.Attrs().Index, Gw: p.PodCIDRs[0].Masked().Addr().Next().AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
}

func (v *vxlan) close() error { return nil } // forwards on without us
