package announce

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// solicit is a solicitation as a machine at mac sends it.
func solicit(mac net.HardwareAddr, from, target netip.Addr) []byte {
	m := append([]byte{neighborSolicit, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	m = append(append(m, optionSourceMAC, 1), mac...)
	return icmp6(mac, multicastMAC(solicitedNode(target)), from, solicitedNode(target), m)
}

func TestSolicitation(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	who, target := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fd77::f0")
	f := solicit(mac, who, target)
	gotWho, gotMAC, gotTarget, ok := solicitation(append(f, 0, 0, 0))
	if !ok || gotWho != who || gotTarget != target || gotMAC.String() != mac.String() {
		t.Error(gotWho, gotMAC, gotTarget, ok)
	}
	if group := solicitedNode(target); group != netip.MustParseAddr("ff02::1:ff00:f0") {
		t.Errorf("the group is %s", group)
	}
	if _, _, _, ok := solicitation(advertisement(mac, mac, target, who, 0)); ok {
		t.Error("an answer was taken for a question")
	}
	for n := range f {
		if _, _, _, ok := solicitation(f[:n]); ok {
			t.Errorf("%d bytes were taken for a question", n)
		}
	}
	for i := 14; i < len(f); i++ { // all but the traffic class, the flow and Ethernet is held by something
		bad := append([]byte{}, f...)
		if bad[i] ^= 1; i < 14 || i > 17 {
			if _, _, _, ok := solicitation(bad); ok {
				t.Errorf("wrong at byte %d, and taken all the same", i)
			}
		}
	}
}

// The kernel finds an address that is on no device where it is answered for, and where it is
// announced to have gone.
func TestNeighborOfTheKernel(t *testing.T) {
	nfttest.Namespace(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "lan1"}))
	here, err := netlink.LinkByName("lan0")
	must(t, err)
	there, err := netlink.LinkByName("lan1")
	must(t, err)
	must(t, netlink.LinkSetUp(here))
	must(t, netlink.LinkSetUp(there))
	// lan1 is the other machine's.
	must(t, netlink.AddrAdd(there, &netlink.Addr{
		IPNet: &net.IPNet{IP: net.ParseIP("fd77::2"), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD,
	}))
	sockets, err := open(here, []knftables.Family{knftables.IPv6Family})
	must(t, err)
	socket := sockets[knftables.IPv6Family].(*ndp)
	addr := netip.MustParseAddr("fd77::f0")
	must(t, socket.listen([]netip.Addr{addr, netip.MustParseAddr("fd88::f0")})) // of one group
	ended := make(chan error, 1)
	go func() { ended <- socket.answer(func(a netip.Addr) bool { return a == addr }) }()

	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	neighbor := func() string {
		t.Helper()
		// Whoever sends wants to know; until the answer is there the kernel keeps the packet.
		err := unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet6{Port: 9, Addr: addr.As16()})
		must(t, err)
		all, err := netlink.NeighList(there.Attrs().Index, netlink.FAMILY_V6)
		must(t, err)
		for _, n := range all {
			if n.IP.Equal(addr.AsSlice()) {
				return n.HardwareAddr.String()
			}
		}
		return "not known"
	}
	eventually := func(want string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for neighbor() != want {
			if time.Now().After(deadline) {
				t.Fatalf("the neighbour is %s, want %s", neighbor(), want)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	eventually(here.Attrs().HardwareAddr.String())
	// Another machine takes over.
	other := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	must(t, (&ndp{file: socket.file, mac: other}).announce(addr))
	eventually(other.String())

	must(t, socket.listen(nil))
	if len(socket.joined) != 0 {
		t.Errorf("still in %v", socket.joined)
	}
	must(t, sockets.close())
	must(t, <-ended)
}
