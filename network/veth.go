package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/network/sysctl"
)

const (
	// devicePrefix begins the names of the pods' host side devices, and of no others.
	devicePrefix = "rk"
	podDevice    = "eth0"
)

// deviceName is the host side's name: 48 bits of a hash, which two pods of one
// machine do not share, within the 15 characters that Linux allows.
func deviceName(uid string) string {
	h := sha256.Sum256([]byte(uid))
	return devicePrefix + hex.EncodeToString(h[:6])
}

// gateway is the pods' next hop in the family of a: an address that no machine has. Its
// hardware address is written into the pod, so that nobody ever asks for it.
func gateway(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.MustParseAddr("fe80::1")
	}
	return netip.AddrFrom4([4]byte{169, 254, 1, 1})
}

// hostMAC is the same on every host side, as no two of them share a segment.
func hostMAC() net.HardwareAddr { return net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee} }

// podMAC is locally administered, with the end of the pod's first address in it.
func podMAC(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}

// cable is the veth between this namespace and a pod's.
type cable struct {
	device string       // its name here
	addrs  []netip.Addr // of the pod, one of each IP family
	own    []netip.Addr // what the machine itself talks to the pod as, in the same order
	mtu    int
	// loopback lets the machine reach the pod under 127.0.0.1, where a host port leads to it.
	loopback bool
}

func (c cable) ipv6() bool { return slices.ContainsFunc(c.addrs, netip.Addr.Is6) }

// plug makes the veth to the pod's namespace at path, or completes one that is there.
func (c cable) plug(path string) error {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	// The handle's socket belongs to the pod's namespace; this thread does not move.
	pod, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	defer pod.Close()
	here, err := c.ensure(pod, ns)
	if err != nil {
		return err
	}
	if err := inNamespace(ns, c.podSettings); err != nil {
		return fmt.Errorf("configure %s in the pod: %w", podDevice, err)
	}
	if err := c.podSide(pod); err != nil {
		return fmt.Errorf("configure %s in the pod: %w", podDevice, err)
	}
	if err := c.hostSide(here); err != nil {
		return fmt.Errorf("configure device %s: %w", c.device, err)
	}
	return nil
}

func (c cable) ensure(pod *netlink.Handle, ns netns.NsHandle) (netlink.Link, error) {
	here, err := netlink.LinkByName(c.device)
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("find device %s: %w", c.device, err)
	}
	there, thereErr := pod.LinkByName(podDevice)
	if thereErr != nil && !errors.As(thereErr, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("find %s in the pod: %w", podDevice, thereErr)
	}
	if err == nil && thereErr == nil && there.Attrs().ParentIndex == here.Attrs().Index && here.Attrs().ParentIndex == there.Attrs().Index {
		return here, nil
	}
	if err == nil { // its other end is in a sandbox that is gone, or about to be
		if err := overlay.DeleteLink(c.device); err != nil {
			return nil, err
		}
	}
	if thereErr == nil {
		if there.Type() != "veth" {
			return nil, fmt.Errorf("the pod's namespace has a %s of its own", podDevice)
		}
		if err := pod.LinkDel(there); err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("remove old %s in the pod: %w", podDevice, err)
		}
	}
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: c.device, MTU: c.mtu, HardwareAddr: hostMAC(), TxQLen: -1})
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = podDevice, podMAC(c.addrs[0]), uint32(c.mtu)
	veth.PeerNamespace = netlink.NsFd(int(ns))
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("create device %s: %w; does the kernel have veth?", c.device, err)
	}
	if here, err = netlink.LinkByName(c.device); err != nil {
		return nil, fmt.Errorf("find device %s: %w", c.device, err)
	}
	return here, nil
}

// podSettings are those of the pod's kernel. In its namespace.
func (c cable) podSettings() error {
	// TCP sends less where what it sends vanishes again and again (RFC 4821), for a path may
	// shrink, or lead out of the cluster, and nobody says so. Off is what every namespace begins with.
	const probing, off, whenLost = "net/ipv4/tcp_mtu_probing", "0", "1"
	have, err := sysctl.Get(probing)
	if err == nil && have == off {
		if err = sysctl.Set(probing, whenLost); errors.Is(err, unix.EROFS) {
			err = nil // pods go without where nobody may write settings
		}
	}
	if err != nil || !c.ipv6() {
		return err
	}
	return sysctl.Device(podDevice, true)
}

func (c cable) podSide(pod *netlink.Handle) error {
	lo, err := pod.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := pod.LinkByName(podDevice)
	if err != nil {
		return err
	}
	steps := []func() error{
		func() error { return pod.LinkSetUp(lo) },
		func() error { return pod.LinkSetUp(eth) },
	}
	index := eth.Attrs().Index
	for _, addr := range c.addrs {
		gw := gateway(addr).AsSlice()
		steps = append(steps,
			func() error { return pod.AddrReplace(eth, address(addr)) },
			func() error {
				return pod.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gw, HardwareAddr: hostMAC()})
			},
			func() error {
				return pod.RouteReplace(&netlink.Route{LinkIndex: index, Dst: host(gateway(addr)), Scope: netlink.SCOPE_LINK})
			},
			func() error { return pod.RouteReplace(&netlink.Route{LinkIndex: index, Gw: gw}) },
		)
	}
	return inOrder(steps...)
}

func (c cable) hostSide(here netlink.Link) error {
	steps := []func() error{
		func() error { return sysctl.Device(c.device, c.ipv6()) },
		// A pod that reaches itself through a Service leaves by the device it came from; that is
		// no reason to tell it of a shorter way. (IPv6 tells only where the device has an
		// address of its own.)
		func() error { return sysctl.Set("net/ipv4/conf/"+c.device+"/send_redirects", "0") },
		func() error { return netlink.LinkSetUp(here) },
	}
	index := here.Attrs().Index
	for i, addr := range c.addrs {
		steps = append(steps,
			func() error {
				return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: podMAC(c.addrs[0])})
			},
			func() error {
				return netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: host(addr), Src: c.own[i].AsSlice(), Scope: netlink.SCOPE_LINK, Protocol: localRoutes})
			},
		)
	}
	if c.loopback && slices.ContainsFunc(c.addrs, netip.Addr.Is4) {
		steps = append(steps, func() error { return sysctl.Set("net/ipv4/conf/"+c.device+"/route_localnet", "1") })
	}
	return inOrder(steps...)
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
