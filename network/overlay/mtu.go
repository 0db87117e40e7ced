package overlay

import "net/netip"

// MinIPv6 is what every IPv6 link carries (RFC 8200); Linux has no IPv6 on a device with less.
const MinIPv6 = 1280

// Overhead is what a backend takes from every packet, in bytes, whichever peer it goes to,
// on a machine with an address like that.
func Overhead(kind string, like netip.Addr) int {
	if kind == "wireguard" {
		like = netip.IPv6Unspecified() // an endpoint may be of either family
	}
	return header(kind, like)
}

// header is what a backend puts before a packet between machines with addresses like that.
func header(kind string, like netip.Addr) int {
	outer := 20
	if like.Is6() {
		outer = 40
	}
	switch kind {
	case "wireguard":
		return outer + 8 + 32 // UDP, its own
	case "vxlan":
		return outer + 8 + 8 + 14 // UDP, its own, inner Ethernet
	}
	return 0
}

// Room is what a backend leaves of a path with that MTU between machines with addresses like that, for
// packets of pods. WireGuard fills packets up to a multiple of 16 bytes, unless the device's MTU is
// less.
func Room(kind string, path int, like netip.Addr) int {
	room := path - header(kind, like)
	if kind == "wireguard" {
		room &^= 15
	}
	return room
}

// Most is the size of the largest packet that a backend whose device has that MTU sends between
// machines with addresses like that.
func Most(kind string, mtu int, like netip.Addr) int { return mtu + header(kind, like) }
