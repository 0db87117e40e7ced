package overlay

import (
	"net/netip"
	"testing"
)

func TestRouteMTU(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, c := range []struct {
		kind         string
		device, path int
		at           netip.Addr
		want4, want6 int // of routes to pods
	}{
		{"wireguard", 1420, 0, v4, 1420, 1420},
		{"wireguard", 1420, 1492, v4, 1420, 1420}, // IPv4 costs less than what is reckoned with
		{"wireguard", 1420, 1428, v4, 1360, 1360}, // 1368, filled up to 1376
		{"wireguard", 1420, 1492, v6, 1408, 1408},
		{"wireguard", 1420, 1400, v6, 1312, 1312},
		{"wireguard", 1420, 1339, v4, 1264, 1280}, // IPv6 cannot go below
		{"vxlan", 1450, 1400, v4, 1350, 1350},
		{"vxlan", 1430, 1400, v6, 1330, 1330},
		{"vxlan", 8950, 1500, v4, 1450, 1450},
		{"direct", 1500, 1400, v4, 1400, 1400},
		{"direct", 1500, 576, v4, 576, 1280},
	} {
		o := &Overlay{kind: c.kind, cfg: Config{MTU: c.device}}
		p := Peer{Endpoint: c.at, PathMTU: c.path}
		if got := o.routeMTU(p, netip.MustParsePrefix("10.42.1.0/24")); got != c.want4 {
			t.Errorf("%+v: IPv4 %d", c, got)
		}
		if got := o.routeMTU(p, netip.MustParsePrefix("fd42::/64")); got != c.want6 {
			t.Errorf("%+v: IPv6 %d", c, got)
		}
		if c.path == 0 { // whatever the device leaves fits a path like the device
			if most := Most(c.kind, c.device, c.at); most > c.device+Overhead(c.kind, c.at) {
				t.Errorf("%+v: sends %d", c, most)
			}
		}
	}
}
