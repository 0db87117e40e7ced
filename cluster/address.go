package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoAddress says that the machine has no address by which others could reach it.
var ErrNoAddress = errors.New("this machine has no network address yet; connect it, or give one with --advertise-address")

// FixedAddress advertises the address that the user gave.
func FixedAddress(a netip.Addr) func(netip.Addr, []netip.AddrPort) (netip.Addr, error) {
	return func(netip.Addr, []netip.AddrPort) (netip.Addr, error) { return a, nil }
}

// Advertiser finds the address by itself. The current one stays as long as the
// machine has it, so that a second interface does not make it flap; else it is the
// one from which the kernel reaches a known peer; else preferred, if the machine has that;
// else the first global one of the IP family of the current one, or of preferred; of any,
// IPv4 first, if neither is valid. Addresses within own, the cluster's networks, are not
// the machine's. No packet is sent. [ErrNoAddress].
func Advertiser(preferred netip.Addr, own []netip.Prefix) func(current netip.Addr, towards []netip.AddrPort) (netip.Addr, error) {
	return func(current netip.Addr, towards []netip.AddrPort) (netip.Addr, error) {
		ours, err := localAddresses(own)
		if err != nil {
			return netip.Addr{}, err
		}
		if ours.has(current) {
			return current, nil
		}
		if a := ours.towards(towards); a.IsValid() {
			return a, nil
		}
		if ours.has(preferred) {
			return preferred, nil
		}
		known := current
		if !known.IsValid() {
			known = preferred
		}
		for _, a := range ours.lasting() {
			if !known.IsValid() || a.Is4() == known.Is4() {
				return a, nil
			}
		}
		return netip.Addr{}, ErrNoAddress
	}
}

// AddressTowards is the one from which the kernel reaches the first of towards that it has
// a route to; zero if it has none to any. Own as for [Advertiser]. No packet is sent.
func AddressTowards(towards []netip.AddrPort, own []netip.Prefix) (netip.Addr, error) {
	ours, err := localAddresses(own)
	if err != nil {
		return netip.Addr{}, err
	}
	return ours.towards(towards), nil
}

// Addresses are the machine's global and unique local ones that are there to stay, IPv4
// first. Own as for [Advertiser].
func Addresses(own []netip.Prefix) ([]netip.Addr, error) {
	ours, err := localAddresses(own)
	return ours.lasting(), err
}

// OtherAddress is the machine's address of the other IP family than a, on the device that
// has a; zero if there is none. The current one stays while it is that; zero: none is known
// yet. Own as for [Advertiser].
func OtherAddress(a, current netip.Addr, own []netip.Prefix) (netip.Addr, error) {
	ours, err := localAddresses(own)
	if err != nil {
		return netip.Addr{}, err
	}
	return ours.other(a, current), nil
}

// local is an address of the machine: global or unique local, and in use.
type local struct {
	netip.Addr
	link int
	// temporary: one of the IPv6 addresses that change every day (RFC 8981). Peers are to
	// be found where they were, so these are not told to anybody.
	temporary bool
}

type locals []local

// localAddresses lists those outside own, IPv4 first.
func localAddresses(own []netip.Prefix) (locals, error) {
	var out locals
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list network addresses: %w", err)
		}
		for _, x := range list {
			a, ok := netip.AddrFromSlice(x.IP)
			a = a.Unmap()
			inside := func(p netip.Prefix) bool { return p.Contains(a) }
			if !ok || !a.IsGlobalUnicast() || slices.ContainsFunc(own, inside) {
				continue
			}
			if a.Is6() && x.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
				continue // perhaps another machine's
			}
			out = append(out, local{a, x.LinkIndex, a.Is6() && x.Flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DEPRECATED) != 0})
		}
	}
	return out, nil
}

// dump asks again when the list changed meanwhile, as it does while pods are made. Of a list
// that never stays the same, what was there last is good enough: it is looked at again soon.
func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range 10 { // changes come in bursts; ten whole lists outlast one
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, nil
}

func (l locals) has(a netip.Addr) bool {
	return slices.ContainsFunc(l, func(x local) bool { return x.Addr == a })
}

func (l locals) lasting() (all []netip.Addr) {
	for _, x := range l {
		if !x.temporary {
			all = append(all, x.Addr)
		}
	}
	return all
}

// on is the first lasting address of a device in a family; zero if it has none.
func (l locals) on(link int, v4 bool) netip.Addr {
	for _, x := range l {
		if x.link == link && x.Is4() == v4 && !x.temporary {
			return x.Addr
		}
	}
	return netip.Addr{}
}

// other is for [OtherAddress].
func (l locals) other(a, current netip.Addr) netip.Addr {
	i := slices.IndexFunc(l, func(x local) bool { return x.Addr == a })
	if i < 0 {
		return netip.Addr{}
	}
	stays := func(x local) bool {
		return x.Addr == current && x.Is4() != a.Is4() && x.link == l[i].link && !x.temporary
	}
	if slices.ContainsFunc(l, stays) {
		return current
	}
	return l.on(l[i].link, a.Is6())
}

// towards asks the kernel: a UDP socket that is connected sends nothing.
func (l locals) towards(peers []netip.AddrPort) netip.Addr {
	for _, p := range peers {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(p))
		if err != nil {
			continue // no route to this one; the next may have one
		}
		a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
		c.Close()
		for _, x := range l {
			if x.Addr != a {
				continue
			}
			if lasting := l.on(x.link, a.Is4()); x.temporary && lasting.IsValid() {
				return lasting
			}
			return a
		}
	}
	return netip.Addr{}
}
