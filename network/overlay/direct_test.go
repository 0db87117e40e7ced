package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
)

func TestOnlyNoAddress(t *testing.T) {
	d := &direct{}
	_, err := d.route(Peer{Name: "h2", Endpoint: netip.MustParseAddr("192.0.2.2")}, netip.MustParsePrefix("fd42:0:0:1::/64"))
	wrapped := fmt.Errorf("set peer h2: %w", errors.Join(fmt.Errorf("route: %w", err), nil))
	other := errors.New("the kernel refuses")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {other, false}, {err, true}, {wrapped, true}, {errors.Join(wrapped, wrapped), true},
		{errors.Join(wrapped, other), false}, {fmt.Errorf("set peer h2: %w", errors.Join(err, other)), false},
	} {
		if got := OnlyNoAddress(c.err); got != c.want {
			t.Errorf("%v for %q", got, c.err)
		}
	}
}

// A machine that is not at the address yet keeps what it has.
func TestDirectKeepsItsDevice(t *testing.T) {
	d := &direct{cfg: Config{Address: netip.MustParseAddr("127.0.0.1")}}
	if err := d.up(); err != nil {
		t.Fatal(err)
	}
	link := d.link
	if err := d.move(netip.MustParseAddr("192.0.2.77"), 1500); err == nil {
		t.Error("an address that the machine has not was taken")
	}
	if d.link != link {
		t.Errorf("the device is now %v", d.link)
	}
}
