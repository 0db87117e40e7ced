package allocation

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"

	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Addresses allocates ClusterIPs of one range, which is of one IP family. What is taken is an IPAddress
// object, as upstream has it. Its methods may be called concurrently; those that take or
// give back wait for the store.
type Addresses struct {
	objects *addressObjects
	cidr    netip.Prefix
	size    uint64 // usable addresses, at offsets 1 to size
	holder  *networking.ParentReference
	dryRun  bool
}

var _ ipallocator.Interface = (*Addresses)(nil)

// maxSpan bounds how much of a wide IPv6 range is used; upstream does the same.
const maxSpan = 1 << 16

// NewAddresses allocates of cidr. Registry keeps the objects in store, under prefix
// ("/registry").
func NewAddresses(store raftstore.Store, prefix string, registry Registry, cidr netip.Prefix) *Addresses {
	objects := &addressObjects{
		registry: registry,
		keys:     claims{store, prefix + "/" + networking.GroupName + "/ipaddresses/"},
		old:      claims{store, prefix + "/ranges/serviceips/"},
	}
	bits := min(cidr.Addr().BitLen()-cidr.Bits(), 16)
	span := uint64(1) << bits
	size := span - 1 // without the network's own address
	if cidr.Addr().Is4() {
		size-- // nor the broadcast address
	}
	return &Addresses{objects: objects, cidr: cidr, size: min(size, maxSpan-1)}
}

// For allocates for a Service: the address says whose it is.
func (a *Addresses) For(namespace, name string) *Addresses {
	own := *a
	own.holder = &networking.ParentReference{Resource: "services", Namespace: namespace, Name: name}
	return &own
}

// At returns the address at an offset into the range.
func (a *Addresses) At(offset uint64) netip.Addr {
	b := a.cidr.Addr().AsSlice()
	tail := b[len(b)-4:]
	binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)+uint32(offset))
	addr, _ := netip.AddrFromSlice(b) // b has a valid length
	return addr
}

// reserved is how many addresses at the start are given out only on request or
// when all others are taken, so that a chosen address such as that of DNS is
// rarely in use: upstream's rule, min(max(16, size/16), 256).
func (a *Addresses) reserved() uint64 {
	if a.size < 32 {
		return 0
	}
	return min(max(16, a.size/16), 256)
}

func (a *Addresses) usable(ip net.IP) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(ip)
	addr = addr.Unmap()
	if !ok || !a.cidr.Contains(addr) || addr == a.cidr.Addr() || a.At(a.size).Less(addr) {
		return addr, &ipallocator.ErrNotInRange{IP: ip, ValidRange: a.cidr.String()}
	}
	return addr, nil
}

// Allocate claims a given address.
func (a *Addresses) Allocate(ip net.IP) error {
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
func (a *Addresses) AllocateNext() (net.IP, error) {
	low := a.reserved()
	for _, part := range []struct{ first, n uint64 }{{low + 1, a.size - low}, {1, low}} {
		if part.n == 0 {
			continue
		}
		start := rand.Uint64N(part.n)
		for i := range part.n {
			ip := net.IP(a.At(part.first + (start+i)%part.n).AsSlice())
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
func (a *Addresses) Release(ip net.IP) error {
	addr, err := a.usable(ip)
	if err != nil || a.dryRun {
		return err
	}
	return a.objects.release(addr)
}

// ForEach calls f for each claimed address of the range.
func (a *Addresses) ForEach(f func(net.IP)) {
	held, err := a.objects.names()
	if err != nil { // a list at the newest revision has no way to fail but a closed store
		return
	}
	for _, name := range held {
		ip := net.ParseIP(name)
		if _, err := a.usable(ip); err == nil {
			f(ip)
		}
	}
}

// CIDR is the whole range, as upstream has it.
func (a *Addresses) CIDR() net.IPNet {
	return net.IPNet{IP: a.cidr.Addr().AsSlice(), Mask: net.CIDRMask(a.cidr.Bits(), a.cidr.Addr().BitLen())}
}

// IPFamily of the range.
func (a *Addresses) IPFamily() api.IPFamily {
	if a.cidr.Addr().Is4() {
		return api.IPv4Protocol
	}
	return api.IPv6Protocol
}

// Has tells whether an address is claimed as far as this peer knows.
func (a *Addresses) Has(ip net.IP) bool {
	addr, ok := netip.AddrFromSlice(ip)
	return ok && a.objects.has(addr.Unmap())
}

// DryRun returns an allocator that answers the same and claims nothing.
func (a *Addresses) DryRun() ipallocator.Interface {
	d := *a
	d.dryRun = true
	return &d
}

func (a *Addresses) Destroy()       {}
func (a *Addresses) EnableMetrics() {}
