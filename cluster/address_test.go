package cluster

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
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

func TestTheOtherAddressStays(t *testing.T) {
	a := netip.MustParseAddr
	ours := locals{
		{a("192.168.1.5"), 2, false}, {a("192.168.1.250"), 2, false}, {a("172.17.0.1"), 3, false},
		{a("2001:db8::9"), 2, false}, {a("2001:db8::5"), 2, false}, {a("2001:db8::dead"), 2, true}, {a("fd17::1"), 3, false},
	}
	for _, c := range []struct{ of, current, want string }{
		{"192.168.1.5", "2001:db8::5", "2001:db8::5"},
		{"192.168.1.5", "2001:db8::dead", "2001:db8::9"}, // it is given up
		{"192.168.1.5", "fd17::1", "2001:db8::9"},        // on another device
		{"192.168.1.5", "2001:db8::4", "2001:db8::9"},    // gone
		{"192.168.1.5", "192.168.1.250", "2001:db8::9"},  // the first family has become the other
		{"2001:db8::5", "192.168.1.250", "192.168.1.250"},
	} {
		if got := ours.other(a(c.of), a(c.current)); got != a(c.want) {
			t.Errorf("besides %s, with %s until now: %s, want %s", c.of, c.current, got, c.want)
		}
	}
	if got := ours.other(a("192.168.1.5"), netip.Addr{}); got != a("2001:db8::9") {
		t.Errorf("the first one: %s", got)
	}
}

// The kernel says so when a list changed while it was read, and gives what it has.
func TestListThatChangesMeanwhile(t *testing.T) {
	for interrupted, want := range map[int]int{0: 1, 3: 4, 1000: 10} {
		n := 0
		got, err := dump(func() ([]int, error) {
			if n++; n <= interrupted {
				return []int{n}, netlink.ErrDumpInterrupted
			}
			return []int{n}, nil
		})
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("interrupted %d times: %v, %v, want that of list %d", interrupted, got, err, want)
		}
	}
	broken := errors.New("broken")
	if _, err := dump(func() ([]int, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// Whatever this machine has, what is found is its own and outside the cluster's networks.
func TestAddressesOfThisMachine(t *testing.T) {
	all, err := Addresses(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		other, err := OtherAddress(a, netip.Addr{}, nil)
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
	// A machine that has no IPv6 address now keeps the one that it told the others, and so for IPv4.
	for _, gone := range []netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")} {
		got, err := Advertiser(gone, nil)(netip.Addr{}, nil)
		if err == nil && got.Is4() != gone.Is4() || err != nil && !errors.Is(err, ErrNoAddress) {
			t.Errorf("instead of %s: %s, %v", gone, got, err)
		}
	}
	nobody := netip.MustParseAddr("192.0.2.77")
	if other, err := OtherAddress(nobody, netip.Addr{}, nil); err != nil || other.IsValid() {
		t.Errorf("the other address than one that is not ours: %s, %v", other, err)
	}
}
