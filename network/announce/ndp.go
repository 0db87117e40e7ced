package announce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// ndp speaks Neighbor Discovery (RFC 4861) on one device. It reads whole frames: a
// neighbour that checks whether the address is still here sends to the address itself
// (section 7.3.3), which is on no device of this machine.
type ndp struct {
	file  *os.File
	mac   net.HardwareAddr
	index int
	// groups is the socket that holds the memberships; -1 as long as there are none.
	groups int
	joined map[netip.Addr]bool // the groups
}

const (
	neighborSolicit   = 135
	neighborAdvertise = 136
	optionSourceMAC   = 1
	optionTargetMAC   = 2
	flagSolicited     = 1 << 30
	flagOverride      = 1 << 29

	ethernetLen = 14
	ipv6Len     = 40
	// solicitLen is Ethernet's and IPv6's header and a solicitation without options.
	solicitLen = ethernetLen + ipv6Len + 24
)

// allNodes is everybody on the segment.
func allNodes() netip.Addr { return netip.MustParseAddr("ff02::1") }

func openNDP(index int, mac net.HardwareAddr) (*ndp, error) {
	fd, err := openPacket(index, mac, unix.ETH_P_IPV6)
	if err != nil {
		return nil, err
	}
	// Only solicitations come to the daemon, however much else passes the device.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: ethernetLen + 6}, // the next header
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.IPPROTO_ICMPV6, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: ethernetLen + ipv6Len}, // the type
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: neighborSolicit, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 256},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return nil, errors.Join(fmt.Errorf("filter packet socket: %w", err), unix.Close(fd))
	}
	return &ndp{file: os.NewFile(uintptr(fd), "ndp"), mac: mac, index: index, groups: -1, joined: map[netip.Addr]bool{}}, nil
}

func (n *ndp) close() error {
	err := n.file.Close()
	if n.groups >= 0 {
		err = errors.Join(err, unix.Close(n.groups))
	}
	return err
}

// listen joins the groups that solicitations for the addresses are sent to, and leaves the
// others: neither the device nor a switch would let them through.
func (n *ndp) listen(addrs []netip.Addr) error {
	want := map[netip.Addr]bool{}
	for _, a := range addrs {
		want[solicitedNode(a)] = true
	}
	if n.groups < 0 && len(want) > 0 {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open IPv6 socket: %w", err)
		}
		n.groups = fd
	}
	var errs []error
	change := func(option int, group netip.Addr) bool {
		err := unix.SetsockoptIPv6Mreq(n.groups, unix.IPPROTO_IPV6, option, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(n.index)})
		if err != nil {
			errs = append(errs, fmt.Errorf("join or leave group %s: %w", group, err))
		}
		return err == nil
	}
	for group := range n.joined {
		if !want[group] && change(unix.IPV6_LEAVE_GROUP, group) {
			delete(n.joined, group)
		}
	}
	for group := range want {
		if !n.joined[group] && change(unix.IPV6_JOIN_GROUP, group) {
			n.joined[group] = true
		}
	}
	return errors.Join(errs...)
}

// answer is [responder]'s.
func (n *ndp) answer(mine func(netip.Addr) bool) error {
	return answer(n.file, func(question []byte) []byte {
		who, mac, target, ok := solicitation(question)
		if !ok || !mine(target) {
			return nil
		}
		flags := uint32(flagSolicited | flagOverride)
		if who.IsUnspecified() { // somebody wants to take the address for himself (RFC 4862, section 5.4)
			who, mac, flags = allNodes(), multicastMAC(allNodes()), flagOverride
		}
		return advertisement(n.mac, mac, target, who, flags)
	})
}

// announce tells everybody on the segment that the address is here (section 7.2.6).
func (n *ndp) announce(addr netip.Addr) error {
	return send(n.file, advertisement(n.mac, multicastMAC(allNodes()), addr, allNodes(), flagOverride))
}

// solicitedNode is the group of an address (RFC 4291, section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b, group := a.As16(), [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff}
	copy(group[13:], b[13:])
	return netip.AddrFrom16(group)
}

// multicastMAC is a group's address on Ethernet (RFC 2464, section 7).
func multicastMAC(group netip.Addr) net.HardwareAddr {
	b := group.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// advertisement is an Ethernet frame that says that target is at mac.
func advertisement(mac, dst net.HardwareAddr, target, to netip.Addr, flags uint32) []byte {
	m := make([]byte, 0, 32)
	m = append(m, neighborAdvertise, 0, 0, 0)
	m = binary.BigEndian.AppendUint32(m, flags)
	m = append(m, target.AsSlice()...)
	m = append(append(m, optionTargetMAC, 1), mac...)
	return icmp6(mac, dst, target, to, m)
}

// icmp6 puts a message into its headers, with its checksum. The hop limit says that no
// router was on its way.
func icmp6(mac, dst net.HardwareAddr, from, to netip.Addr, m []byte) []byte {
	f := make([]byte, 0, ethernetLen+ipv6Len+len(m))
	f = append(append(f, dst...), mac...)
	f = binary.BigEndian.AppendUint16(f, unix.ETH_P_IPV6)
	f = binary.BigEndian.AppendUint32(f, 6<<28)
	f = binary.BigEndian.AppendUint16(f, uint16(len(m)))
	f = append(f, unix.IPPROTO_ICMPV6, 255)
	f = append(append(f, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(m[2:], checksum6(f[ethernetLen+8:ethernetLen+ipv6Len], m))
	return append(f, m...)
}

// checksum6 is that of ICMPv6 (RFC 4443, section 2.3) over both addresses and the message,
// whose own field counts as it is.
func checksum6(addrs, m []byte) uint16 {
	sum := uint32(unix.IPPROTO_ICMPV6) + uint32(len(m))
	for _, part := range [][]byte{addrs, m} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			sum += uint32(part[len(part)-1]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// solicitation reads a frame; ok is false for what is no valid solicitation (RFC 4861,
// section 7.1.1). who is unspecified for one who wants the address for himself.
func solicitation(f []byte) (who netip.Addr, mac net.HardwareAddr, target netip.Addr, ok bool) {
	if len(f) < solicitLen || binary.BigEndian.Uint16(f[12:]) != unix.ETH_P_IPV6 {
		return who, nil, target, false
	}
	ip := f[ethernetLen:]
	size := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != unix.IPPROTO_ICMPV6 || ip[7] != 255 || size < 24 || size > len(ip)-ipv6Len {
		return who, nil, target, false
	}
	m := ip[ipv6Len : ipv6Len+size]
	if m[0] != neighborSolicit || m[1] != 0 || checksum6(ip[8:ipv6Len], m) != 0 {
		return who, nil, target, false
	}
	who, target = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(m[8:24]))
	mac = append(mac, f[6:12]...)
	for options := m[24:]; len(options) > 0; {
		n := 0
		if len(options) >= 2 {
			n = int(options[1]) * 8
		}
		if n == 0 || n > len(options) {
			return who, nil, target, false
		}
		if options[0] == optionSourceMAC && n == 8 {
			copy(mac, options[2:8])
		}
		options = options[n:]
	}
	return who, mac, target, !target.IsMulticast()
}
