package nft

import (
	"net/netip"

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

// AddressType is the type of the family's addresses in sets.
func AddressType(f knftables.Family) string {
	if f == knftables.IPv4Family {
		return "ipv4_addr"
	}
	return "ipv6_addr"
}
