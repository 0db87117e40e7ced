package cluster

import (
	"net/netip"
	"testing"
)

func TestAddressesThatAreTold(t *testing.T) {
	a := netip.MustParseAddr
	ours := locals{
		{a("192.168.1.5"), 2, false}, {a("172.17.0.1"), 3, false},
		{a("2001:db8::aaaa"), 2, true}, {a("2001:db8::5"), 2, false}, {a("fd17::1"), 3, false},
	}
	for _, c := range []struct {
		link int
		v4   bool
		want string
	}{{2, true, "192.168.1.5"}, {2, false, "2001:db8::5"}, {3, false, "fd17::1"}, {4, false, "invalid IP"}} {
		if got := ours.on(c.link, c.v4); got.String() != c.want {
			t.Errorf("device %d, IPv4 %t: %s, want %s", c.link, c.v4, got, c.want)
		}
	}
	if !ours.has(a("2001:db8::aaaa")) || len(ours.lasting()) != 4 {
		t.Errorf("lasting: %v", ours.lasting())
	}
}

// Whatever this machine has, what is found is its own and outside the cluster's networks.
func TestAddressesOfThisMachine(t *testing.T) {
	all, err := Addresses(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		other, err := OtherAddress(a, nil)
		if err != nil || other.IsValid() && other.Is4() == a.Is4() {
			t.Errorf("the other address than %s: %s, %v", a, other, err)
		}
		if left, err := Addresses([]netip.Prefix{netip.PrefixFrom(a, a.BitLen())}); err != nil || len(left) >= len(all) {
			t.Errorf("without %s: %v, %v", a, left, err)
		}
	}
	// Without peers to go by it is the preferred one, if that is ours.
	for _, a := range all {
		if got, err := Advertiser(a, nil)(netip.Addr{}, nil); err != nil || got != a {
			t.Errorf("advertised: %s, %v, want %s", got, err, a)
		}
		if got, err := Advertiser(netip.MustParseAddr("192.0.2.77"), nil)(a, nil); err != nil || got != a {
			t.Errorf("advertised: %s, %v, want to keep %s", got, err, a)
		}
	}
	nobody := netip.MustParseAddr("192.0.2.77")
	if other, err := OtherAddress(nobody, nil); err != nil || other.IsValid() {
		t.Errorf("the other address than one that is not ours: %s, %v", other, err)
	}
}
