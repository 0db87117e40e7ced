package announce

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/informers"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
	"github.com/rundigitalplatform/rookery/network/overlay"
)

func TestOwnerMovesOnlyWhatWasTheDeadPeers(t *testing.T) {
	peers := []string{"h1", "h2", "h3", "h4", "h5"}
	count := map[string]int{}
	addr := netip.MustParseAddr("192.0.2.0")
	for range 1000 {
		addr = addr.Next()
		before := owner(addr, peers)
		count[before]++
		shuffled := slices.Clone(peers)
		slices.Reverse(shuffled)
		if owner(addr, shuffled) != before {
			t.Fatalf("%s: the order of the peers matters", addr)
		}
		left := slices.DeleteFunc(shuffled, func(p string) bool { return p == "h3" })
		if after := owner(addr, left); before != "h3" && after != before {
			t.Errorf("%s moves from %s to %s as h3 dies", addr, before, after)
		}
	}
	for p, n := range count {
		if n < 120 || n > 280 { // mean 200, deviation 13
			t.Errorf("%s has %d of 1000 addresses", p, n)
		}
	}
	if got := owner(addr, nil); got != "" {
		t.Errorf("%q without peers", got)
	}
}

func TestRequest(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	who, target := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	f := frame(opRequest, mac, net.HardwareAddr{255, 255, 255, 255, 255, 255}, who, make(net.HardwareAddr, 6), target)
	gotWho, gotMAC, gotTarget, ok := request(append(f, 0, 0, 0))
	if !ok || gotWho != who || gotTarget != target || gotMAC.String() != mac.String() {
		t.Error(gotWho, gotMAC, gotTarget, ok)
	}
	if _, _, _, ok := request(frame(opReply, mac, mac, who, mac, target)); ok {
		t.Error("an answer was taken for a request")
	}
	for n := range f {
		if _, _, _, ok := request(f[:n]); ok {
			t.Errorf("%d bytes were taken for a request", n)
		}
	}
}

// A peer that cannot be dialled answers where no other is on the segment, whoever is elsewhere.
func TestNeighbours(t *testing.T) {
	nfttest.Namespace(t)
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "lan1"}
	must(t, netlink.LinkAdd(link))
	addr := netip.MustParseAddr("192.0.2.1")
	must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	peer := func(name, addr string, hidden bool) Peer {
		return Peer{Name: name, Addresses: []netip.Addr{netip.MustParseAddr(addr), {}}, Hidden: hidden}
	}
	self, hidden, dialled := peer("self", "192.0.2.1", true), peer("hidden", "192.0.2.2", true), peer("dialled", "192.0.2.3", false)
	elsewhere := peer("elsewhere", "198.51.100.1", false)
	for _, c := range []struct {
		peers []Peer
		want  []string
	}{
		{[]Peer{self, hidden, elsewhere}, []string{"self", "hidden"}},
		{[]Peer{self, hidden, dialled, elsewhere}, []string{"dialled"}},
		{[]Peer{elsewhere}, nil},
	} {
		a := &Announcer{cfg: Config{Self: "self", Address: func() netip.Addr { return addr }, Peers: func() []Peer { return c.peers }}}
		if got, err := a.neighbours(); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("of %v: %v, %v; want %v", c.peers, got, err, c.want)
		}
	}
}

// A socket does not outlive its device, also where one of the same name and address comes
// in its place: it says so, and the device is looked for anew.
func TestDeviceIsMadeAgain(t *testing.T) {
	nfttest.Namespace(t)
	addr := netip.MustParseAddr("192.0.2.1")
	add := func() netlink.Link {
		t.Helper()
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "lan1"}
		must(t, netlink.LinkAdd(link))
		must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}))
		return link
	}
	link := add()
	a := &Announcer{cfg: Config{Address: func() netip.Addr { return addr }, Log: slog.New(slog.DiscardHandler)}}
	if err := a.serve(t.Context()); err == nil || err.Error() != "device lan0 is down" {
		t.Errorf("on a device that is down: %v", err)
	}
	for range 2 {
		must(t, netlink.LinkSetUp(link))
		made, err := overlay.LinkOf(addr)
		must(t, err)
		socket, err := openARP(made.Attrs().Index, made.Attrs().HardwareAddr)
		must(t, err)
		ended := make(chan error, 1)
		go func() { ended <- socket.answer(func(netip.Addr) bool { return false }) }()
		must(t, netlink.LinkDel(link))
		select {
		case err := <-ended:
			if !errors.Is(err, unix.ENETDOWN) {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the socket of a device that is gone is still read")
		}
		must(t, socket.close())
		link = add()
	}
}

// Another address of this peer may be on another device.
func TestAddressOfThePeerChanges(t *testing.T) {
	nfttest.Namespace(t)
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "lan1"}
	must(t, netlink.LinkAdd(link))
	must(t, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("192.0.2.1"), Mask: net.CIDRMask(24, 32)}}))
	must(t, netlink.LinkSetUp(link))
	addr, changed := netip.MustParseAddr("192.0.2.0"), make(chan struct{}, 1)
	changed <- struct{}{}
	inf := informers.NewSharedInformerFactory(nil, 0) // never started: there is nothing
	a := New(Config{
		Services: inf.Core().V1().Services(), Slices: inf.Discovery().V1().EndpointSlices(),
		Families: []knftables.Family{knftables.IPv4Family, knftables.IPv6Family}, Changed: changed,
		Address: func() netip.Addr { // another one each time it is asked for
			addr = addr.Next()
			return addr
		},
		Log: slog.New(slog.DiscardHandler),
	})
	if err := a.serve(t.Context()); !errors.Is(err, errMoved) {
		t.Errorf("ended with %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
