package nft

import (
	"cmp"
	"net/netip"
	"slices"
)

// Outermost leaves out what lies within another prefix, for nft wants its intervals apart.
// The result is sorted, the larger prefixes first; so is all.
func Outermost(all []netip.Prefix) (out []netip.Prefix) {
	slices.SortFunc(all, func(a, b netip.Prefix) int { return cmp.Or(a.Bits()-b.Bits(), a.Addr().Compare(b.Addr())) })
	for _, p := range all {
		if !slices.ContainsFunc(out, p.Overlaps) {
			out = append(out, p)
		}
	}
	return out
}
