package nft

import (
	"net/netip"
	"strings"

	"sigs.k8s.io/knftables"
)

// FamilyOf is the table family of an address. There is one table of each IP family that
// the cluster has; the family is also the keyword in rules ("ip saddr", "ip6 saddr").
func FamilyOf(a netip.Addr) knftables.Family {
	if a.Unmap().Is4() {
		return knftables.IPv4Family
	}
	return knftables.IPv6Family
}

// Name is the address as a part of the name of a chain or set, which has no colons.
func Name(a netip.Addr) string { return strings.ReplaceAll(a.String(), ":", "_") }

// AddressType is the type of the family's addresses in sets.
func AddressType(f knftables.Family) string {
	if f == knftables.IPv4Family {
		return "ipv4_addr"
	}
	return "ipv6_addr"
}
