package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// addresses are those of one range. The network and the last (broadcast) address of an
// IPv4 range are not used.
type addresses struct {
	Prefix netip.Prefix `json:"prefix"`
	Freed  []netip.Addr `json:"freed,omitempty"` // oldest first
	Next   netip.Addr   `json:"next"`            // candidates from here on were never used
	taken  map[netip.Addr]struct{}
}

func newAddresses(prefix netip.Prefix) addresses {
	a := addresses{Prefix: prefix.Masked(), taken: map[netip.Addr]struct{}{}}
	a.Next = a.own().Next()
	return a
}

func cloneAll(all []addresses) []addresses {
	out := slices.Clone(all)
	for i := range out {
		out[i].Freed, out[i].taken = slices.Clone(out[i].Freed), maps.Clone(out[i].taken)
	}
	return out
}

// own is the peer's own address, the first of the range.
func (a *addresses) own() netip.Addr { return a.Prefix.Addr().Next() }

// pick takes a never used address, then the one that was released longest ago.
func (a *addresses) pick() (netip.Addr, error) {
	for a.usable(a.Next) {
		addr := a.Next
		a.Next = addr.Next()
		if !slices.Contains(a.Freed, addr) && a.take(addr) {
			return addr, nil
		}
	}
	for len(a.Freed) > 0 {
		addr := a.Freed[0]
		a.Freed = a.Freed[1:]
		if a.usable(addr) && a.take(addr) {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all of %s are in use by %d pods", ErrExhausted, a.Prefix, len(a.taken))
}

func (a *addresses) take(addr netip.Addr) bool {
	if _, ok := a.taken[addr]; ok {
		return false
	}
	a.taken[addr] = struct{}{}
	return true
}

// reusable is up to how many host bits a range has to reuse addresses. A peer's IPv6
// range has 64 and outlives every peer; a list of what was released would only grow.
const reusable = 16

func (a *addresses) release(addr netip.Addr) {
	delete(a.taken, addr)
	if addr.BitLen()-a.Prefix.Bits() <= reusable {
		a.Freed = append(a.Freed, addr)
	}
}

func (a *addresses) usable(addr netip.Addr) bool {
	return addr.IsValid() && a.Prefix.Contains(addr) && addr != a.Prefix.Addr() && addr != a.own() &&
		(addr.Is6() || a.Prefix.Contains(addr.Next()))
}
