package pathmtu

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	fragNeeded  = 4 // code of ICMP's "destination unreachable" (RFC 792)
	icmp4Filter = 1 // of linux/icmp.h, at level SOL_RAW
	icmp6Filter = 1 // of linux/icmpv6.h
)

// rawSocket hears of one type of ICMP alone, that of the IP family.
func rawSocket(like netip.Addr, kind4 ipv4.ICMPType, kind6 ipv6.ICMPType) (fd int, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if like.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	if fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto); err != nil {
		return -1, fmt.Errorf("open raw socket: %w", err)
	}
	if like.Is4() {
		err = unix.SetsockoptInt(fd, unix.SOL_RAW, icmp4Filter, int(int32(^(uint32(1) << kind4))))
	} else {
		filter := unix.ICMPv6Filter{}
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[kind6/32] &^= 1 << (kind6 % 32)
		err = unix.SetsockoptICMPv6Filter(fd, proto, icmp6Filter, &filter)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("filter raw socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// Listen calls too for each address of which a router says that a packet of this machine on
// the way there was too large, until ctx ends. What it says may be forged, and is a reason to
// look and no more; like is an address of the IP family that is listened to. It needs root.
func Listen(ctx context.Context, like netip.Addr, too func(netip.Addr)) error {
	fd, err := rawSocket(like, ipv4.ICMPTypeDestinationUnreachable, ipv6.ICMPTypePacketTooBig)
	if err != nil {
		return fmt.Errorf("listen to routers: %w", err)
	}
	file := os.NewFile(uintptr(fd), "icmp")
	defer file.Close()
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) }) // fails only on a closed one, which waits for nothing
	defer stop()
	buf := make([]byte, 2048) // the beginning is enough
	for {
		n, err := file.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("listen to routers: %w", err)
		default:
			if to := quotedDestination(buf[:n], like.Is4()); to.IsValid() {
				too(to)
			}
		}
	}
}

// quotedDestination is where the packet was to go that an ICMP message says was too large;
// zero if it says something else, or the packet was an echo: a search knows of its own, and
// what is said of them late is no reason for another. That of IPv4 comes with its header.
func quotedDestination(p []byte, v4 bool) netip.Addr {
	if v4 {
		if len(p) < ip4Header || len(p) < int(p[0]&0xf)*4+icmpHeader+ip4Header {
			return netip.Addr{}
		}
		p = p[int(p[0]&0xf)*4:]
		if p[0] != byte(ipv4.ICMPTypeDestinationUnreachable) || p[1] != fragNeeded || p[icmpHeader+9] == unix.IPPROTO_ICMP {
			return netip.Addr{}
		}
		return netip.AddrFrom4([4]byte(p[icmpHeader+16:]))
	}
	if len(p) < icmpHeader+ip6Header || p[0] != byte(ipv6.ICMPTypePacketTooBig) || p[icmpHeader+6] == unix.IPPROTO_ICMPV6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(p[icmpHeader+24:]))
}
