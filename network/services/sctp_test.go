package services

import (
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// sctpInit is the packet that begins an association (RFC 9260, section 3.3.2).
func sctpInit(from, to uint16) []byte {
	p := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	p = append(p, 0, 0, 0, 0, 0, 0, 0, 0) // no tag yet; the checksum
	p = append(p, 1, 0, 0, 20)            // INIT
	p = append(p, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// A packet of SCTP to a Service arrives at the endpoint. The packet is made by hand: it takes
// no kernel that has SCTP sockets, only one that tracks its connections.
func TestSCTPIsTranslated(t *testing.T) {
	for _, self := range []Self{self(), self6()} {
		t.Run(string(self.family()), func(t *testing.T) { sctp(t, self) })
	}
}

func sctp(t *testing.T, self Self) {
	nfttest.Namespace(t)
	address := func(v4 string) netip.Addr {
		if self.ServiceCIDR.Addr().Is4() {
			return netip.MustParseAddr(v4)
		}
		return netip.MustParseAddr(six(v4))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there"}))
	here, err := netlink.LinkByName("here")
	must(err)
	there, err := netlink.LinkByName("there")
	must(err)
	must(netlink.LinkSetUp(here))
	must(netlink.LinkSetUp(there))
	own, front, endpoint := address("10.42.1.1"), address("10.43.0.5"), address("10.42.1.2")
	bits := own.BitLen()
	one := func(a netip.Addr) *net.IPNet {
		return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, bits)}
	}
	must(netlink.AddrAdd(here, &netlink.Addr{IPNet: one(own), Flags: unix.IFA_F_NODAD}))
	for _, to := range []netip.Addr{front, endpoint} {
		must(netlink.RouteAdd(&netlink.Route{LinkIndex: here.Attrs().Index, Dst: one(to), Scope: netlink.SCOPE_LINK}))
		must(netlink.NeighSet(&netlink.Neigh{LinkIndex: here.Attrs().Index, State: netlink.NUD_PERMANENT, IP: to.AsSlice(), HardwareAddr: there.Attrs().HardwareAddr}))
	}
	svc := service(t, "d/sig 10.43.0.5 80")
	svc.Spec.Ports[0].Protocol = corev1.ProtocolSCTP
	svc, of := dual(svc, slice(t, corev1.ProtocolSCTP, "d/sig 2905 10.42.1.2@a"))
	table, err := nft.Open(self.family(), "rookery", slog.New(slog.DiscardHandler))
	must(err)
	must(table.Set(t.Context(), "services", desired([]*corev1.Service{svc}, of, nil, alive, self).rules))

	// What leaves is read where it arrives.
	ethertype, domain := uint16(unix.ETH_P_IP), unix.AF_INET
	header, protocolAt, destinationAt := 20, 9, 16
	var to unix.Sockaddr
	if bits == 32 {
		to = &unix.SockaddrInet4{Addr: front.As4()}
	} else {
		ethertype, domain, header, protocolAt, destinationAt = unix.ETH_P_IPV6, unix.AF_INET6, 40, 6, 24
		to = &unix.SockaddrInet6{Addr: front.As16()}
	}
	proto := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ethertype))
	packets, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(proto))
	must(err)
	file := os.NewFile(uintptr(packets), "packets")
	defer file.Close()
	must(unix.Bind(packets, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: there.Attrs().Index}))
	raw, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	must(err)
	defer unix.Close(raw)
	must(unix.Sendto(raw, sctpInit(40000, 80), 0, to))
	must(file.SetReadDeadline(time.Now().Add(time.Minute)))
	buf := make([]byte, 2048)
	for {
		n, err := file.Read(buf)
		must(err)
		if n < header+12 || buf[protocolAt] != unix.IPPROTO_SCTP {
			continue
		}
		got, _ := netip.AddrFromSlice(buf[destinationAt : destinationAt+bits/8])
		if port := binary.BigEndian.Uint16(buf[header+2:]); got != endpoint || port != 2905 {
			t.Errorf("sent to %s, port %d", got, port)
		}
		return
	}
}
