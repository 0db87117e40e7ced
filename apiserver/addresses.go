package apiserver

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"

	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
)

// addresses allocates ClusterIPs of one range. What is taken is an IPAddress
// object, as upstream has it; see [addressObjects].
type addresses struct {
	objects *addressObjects
	cidr    netip.Prefix
	size    uint64 // usable addresses, at offsets 1 to size
	holder  *networking.ParentReference
	dryRun  bool
}

var _ ipallocator.Interface = (*addresses)(nil)

// maxSpan bounds how much of a wide IPv6 range is used; upstream does the same.
const maxSpan = 1 << 16

func newAddresses(objects *addressObjects, cidr netip.Prefix) *addresses {
	bits := min(cidr.Addr().BitLen()-cidr.Bits(), 16)
	span := uint64(1) << bits
	size := span - 1 // without the network's own address
	if cidr.Addr().Is4() {
		size-- // nor the broadcast address
	}
	return &addresses{objects: objects, cidr: cidr, size: min(size, maxSpan-1)}
}

// of allocates for a Service.
func (a *addresses) of(namespace, name string) *addresses {
	own := *a
	own.holder = &networking.ParentReference{Resource: "services", Namespace: namespace, Name: name}
	return &own
}

// at returns the address at an offset into the range.
func (a *addresses) at(offset uint64) netip.Addr {
	b := a.cidr.Addr().AsSlice()
	tail := b[len(b)-4:]
	binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)+uint32(offset))
	addr, _ := netip.AddrFromSlice(b) // b has a valid length
	return addr
}

// reserved is how many addresses at the start are given out only on request or
// when all others are taken, so that a chosen address such as that of DNS is
// rarely in use: upstream's rule, min(max(16, size/16), 256).
func (a *addresses) reserved() uint64 {
	if a.size < 32 {
		return 0
	}
	return min(max(16, a.size/16), 256)
}

func (a *addresses) usable(ip net.IP) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	if !ok || !a.cidr.Contains(addr) || addr == a.cidr.Addr() || a.at(a.size).Less(addr) {
		return addr, &ipallocator.ErrNotInRange{IP: ip, ValidRange: a.cidr.String()}
	}
	return addr, nil
}

// Allocate claims a given address.
func (a *addresses) Allocate(ip net.IP) error {
	addr, err := a.usable(ip)
	if err != nil {
		return err
	}
	if a.dryRun {
		if a.Has(ip) {
			return ipallocator.ErrAllocated
		}
		return nil
	}
	err = a.objects.take(addr, a.holder)
	if errors.Is(err, errTaken) {
		return ipallocator.ErrAllocated
	}
	return err
}

// AllocateNext claims a free address, from a random place on, so that two peers
// rarely try the same.
func (a *addresses) AllocateNext() (net.IP, error) {
	low := a.reserved()
	for _, part := range []struct{ first, n uint64 }{{low + 1, a.size - low}, {1, low}} {
		if part.n == 0 {
			continue
		}
		start := rand.Uint64N(part.n)
		for i := range part.n {
			ip := net.IP(a.at(part.first + (start+i)%part.n).AsSlice())
			if a.Has(ip) {
				continue
			}
			switch err := a.Allocate(ip); {
			case err == nil:
				return ip, nil
			case !errors.Is(err, ipallocator.ErrAllocated):
				return nil, err
			}
		}
	}
	return nil, ipallocator.ErrFull
}

// Release gives an address back.
func (a *addresses) Release(ip net.IP) error {
	addr, err := a.usable(ip)
	if err != nil || a.dryRun {
		return err
	}
	return a.objects.release(addr)
}

// ForEach calls f for each claimed address.
func (a *addresses) ForEach(f func(net.IP)) {
	held, err := a.objects.names()
	if err != nil { // a list at the newest revision has no way to fail but a closed store
		return
	}
	for _, name := range held {
		f(net.ParseIP(name))
	}
}

// CIDR is the whole range.
func (a *addresses) CIDR() net.IPNet {
	return net.IPNet{IP: a.cidr.Addr().AsSlice(), Mask: net.CIDRMask(a.cidr.Bits(), a.cidr.Addr().BitLen())}
}

// IPFamily of the range.
func (a *addresses) IPFamily() api.IPFamily {
	if a.cidr.Addr().Is4() {
		return api.IPv4Protocol
	}
	return api.IPv6Protocol
}

// Has tells whether an address is claimed as far as this peer knows.
func (a *addresses) Has(ip net.IP) bool {
	addr, ok := netip.AddrFromSlice(ip)
	return ok && a.objects.has(addr.Unmap())
}

// DryRun returns an allocator that answers the same and claims nothing.
func (a *addresses) DryRun() ipallocator.Interface {
	d := *a
	d.dryRun = true
	return &d
}

func (a *addresses) Destroy()       {}
func (a *addresses) EnableMetrics() {}
