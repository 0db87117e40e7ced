package announce

import (
	"net"
	"net/netip"
	"slices"
	"testing"
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
