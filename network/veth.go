package network

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network/overlay"
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

// gateway is the pods' next hop: an address that no machine has. Its hardware
// address is written into the pod, so that nobody ever asks for it.
func gateway() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }

// hostMAC is the same on every host side, as no two of them share a segment.
func hostMAC() net.HardwareAddr { return net.HardwareAddr{0xee, 0xee, 0xee, 0xee, 0xee, 0xee} }

func podMAC(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

// plug makes the veth between this namespace and the pod's at path, or completes
// one that is there. own is what the machine itself talks to the pod as. loopback
// lets the machine reach the pod under 127.0.0.1, where a host port leads to it.
func plug(path, device string, addr, own netip.Addr, mtu int, loopback bool) error {
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
	here, err := ensureVeth(pod, ns, device, addr, mtu)
	if err != nil {
		return err
	}
	if err := podSide(pod, addr); err != nil {
		return fmt.Errorf("configure %s in the pod: %w", podDevice, err)
	}
	if err := hostSide(here, addr, own); err != nil || !loopback {
		return err
	}
	return sysctl("net/ipv4/conf/"+device+"/route_localnet", "1")
}

func ensureVeth(pod *netlink.Handle, ns netns.NsHandle, device string, addr netip.Addr, mtu int) (netlink.Link, error) {
	here, err := netlink.LinkByName(device)
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("find device %s: %w", device, err)
	}
	there, thereErr := pod.LinkByName(podDevice)
	if thereErr != nil && !errors.As(thereErr, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("find %s in the pod: %w", podDevice, thereErr)
	}
	if err == nil && thereErr == nil && there.Attrs().ParentIndex == here.Attrs().Index && here.Attrs().ParentIndex == there.Attrs().Index {
		return here, nil
	}
	if err == nil { // its other end is in a sandbox that is gone, or about to be
		if err := overlay.DeleteLink(device); err != nil {
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
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: device, MTU: mtu, HardwareAddr: hostMAC(), TxQLen: -1})
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = podDevice, podMAC(addr), uint32(mtu)
	veth.PeerNamespace = netlink.NsFd(int(ns))
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("create device %s: %w; does the kernel have veth?", device, err)
	}
	if here, err = netlink.LinkByName(device); err != nil {
		return nil, fmt.Errorf("find device %s: %w", device, err)
	}
	return here, nil
}

func podSide(pod *netlink.Handle, addr netip.Addr) error {
	lo, err := pod.LinkByName("lo")
	if err != nil {
		return err
	}
	eth, err := pod.LinkByName(podDevice)
	if err != nil {
		return err
	}
	gw := gateway().AsSlice()
	index := eth.Attrs().Index
	return inOrder(
		func() error { return pod.LinkSetUp(lo) },
		func() error { return pod.AddrReplace(eth, &netlink.Addr{IPNet: host(addr)}) },
		func() error { return pod.LinkSetUp(eth) },
		func() error {
			return pod.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: gw, HardwareAddr: hostMAC()})
		},
		func() error {
			return pod.RouteReplace(&netlink.Route{LinkIndex: index, Dst: host(gateway()), Scope: netlink.SCOPE_LINK})
		},
		func() error { return pod.RouteReplace(&netlink.Route{LinkIndex: index, Gw: gw}) },
	)
}

func hostSide(here netlink.Link, addr, own netip.Addr) error {
	index, name := here.Attrs().Index, here.Attrs().Name
	err := inOrder(
		func() error { return quiet(name) },
		// A pod that reaches itself through a Service leaves by the device it came
		// from; that is no reason to tell it of a shorter way.
		func() error { return sysctl("net/ipv4/conf/"+name+"/send_redirects", "0") },
		func() error { return netlink.LinkSetUp(here) },
		func() error {
			return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: podMAC(addr)})
		},
		func() error {
			return netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: host(addr), Src: own.AsSlice(), Scope: netlink.SCOPE_LINK, Protocol: localRoutes})
		},
	)
	if err != nil {
		return fmt.Errorf("configure device %s: %w", name, err)
	}
	return nil
}

func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
