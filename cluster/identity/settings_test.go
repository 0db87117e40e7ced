package identity

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func dual() Settings {
	s := DefaultSettings()
	s.Second = Ranges{
		PodCIDR: netip.MustParsePrefix("fd42::/56"), ServiceCIDR: netip.MustParsePrefix("fd43::/112"), DNS: netip.MustParseAddr("fd43::a"),
	}
	return s
}

func TestPeerCIDRs(t *testing.T) {
	first := dual()
	second := first
	second.PodCIDR, second.ServiceCIDR, second.DNS = first.Second.PodCIDR, first.Second.ServiceCIDR, first.Second.DNS
	second.Second = first.Ranges()[0]
	for _, c := range []struct {
		s    Settings
		have string
		want []string
	}{
		{DefaultSettings(), "10.42.7.0/24", []string{"10.42.7.0/24"}},
		{first, "10.42.0.0/24", []string{"10.42.0.0/24", "fd42::/64"}},
		{first, "10.42.255.0/24", []string{"10.42.255.0/24", "fd42:0:0:ff::/64"}},
		{second, "fd42:0:0:1f::/64", []string{"fd42:0:0:1f::/64", "10.42.31.0/24"}},
	} {
		var got []string
		for _, p := range c.s.PeerCIDRs(netip.MustParsePrefix(c.have)) {
			got = append(got, p.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.have, got, c.want)
		}
	}
}

func TestSettingsThatCannotWork(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Settings)
		want   string
	}{
		"one family twice": {func(s *Settings) {
			s.Second = Ranges{netip.MustParsePrefix("10.44.0.0/16"), netip.MustParsePrefix("10.45.0.0/16"), netip.MustParseAddr("10.45.0.10")}
		}, "one IP family"},
		"mixed order":           {func(s *Settings) { s.ServiceCIDR, s.Second.ServiceCIDR = s.Second.ServiceCIDR, s.ServiceCIDR }, "same order"},
		"fewer peers in second": {func(s *Settings) { s.Second.PodCIDR = netip.MustParsePrefix("fd42::/60") }, "use a /56"},
		"too small":             {func(s *Settings) { s.Second.PodCIDR = netip.MustParsePrefix("fd42::/112") }, "too small"},
		"DNS elsewhere":         {func(s *Settings) { s.Second.DNS = netip.MustParseAddr("fd44::a") }, "not within"},
	} {
		s := dual()
		c.change(&s)
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want something with %q", name, err, c.want)
		}
	}
	if err := dual().Validate(); err != nil {
		t.Error(err)
	}
}
