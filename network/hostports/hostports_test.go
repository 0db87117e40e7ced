package hostports

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// ports reads "8080:80 udp/53:53 127.0.0.1/8080:80", as the pods of the tables ask for.
func ports(text string) []corev1.ContainerPort {
	var out []corev1.ContainerPort
	for _, word := range strings.Fields(text) {
		var p corev1.ContainerPort
		parts := strings.Split(word, "/")
		for _, part := range parts[:len(parts)-1] {
			if part == "udp" {
				p.Protocol = corev1.ProtocolUDP
			} else {
				p.HostIP = part
			}
		}
		if _, err := fmt.Sscanf(parts[len(parts)-1], "%d:%d", &p.HostPort, &p.ContainerPort); err != nil {
			panic(err)
		}
		out = append(out, p)
	}
	return out
}

func TestWhoGetsAPort(t *testing.T) {
	for _, tt := range []struct{ first, second, want string }{
		{"8080:80", "8081:80", ""},
		{"8080:80", "8080:81", "hostPort 8080/TCP is already taken"},
		{"8080:80", "udp/8080:80", ""},
		{"8080:80", "192.0.2.1/8080:80", "hostPort 8080/TCP of 192.0.2.1 is already taken"},
		{"192.0.2.1/8080:80", "0.0.0.0/8080:80", "hostPort 8080/TCP of 0.0.0.0 is already taken"},
		{"0.0.0.0/8080:80", "192.0.2.1/8080:80", "hostPort 8080/TCP of 192.0.2.1 is already taken"},
		{"0.0.0.0/8080:80", "::/8080:80", ""},
		{"8080:80", "::/8080:80", "hostPort 8080/TCP of :: is already taken"},
		{"2001:db8::1/8080:80", "192.0.2.1/8080:80", ""},
		{"2001:db8::1/8080:80", "0.0.0.0/8080:80", ""},
		{"2001:db8::1/8080:80", "8080:80", "hostPort 8080/TCP is already taken"},
		{"192.0.2.1/8080:80", "192.0.2.2/8080:80", ""},
		{"", "6443:80", "hostPort 6443/TCP is this machine's own: the API"},
		{"", "::1/8080:80 0:80", ""},
	} {
		t.Run(tt.first+" then "+tt.second, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d", "hostports.json")
			b, err := Open(path, map[string][]Port{"the API": {{Proto: "tcp", Host: 6443}}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Publish("a", Of(ports(tt.first))); err != nil {
				t.Fatal(err)
			}
			before := fmt.Sprint(b.All())
			_, err = b.Publish("b", Of(ports(tt.second)))
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("have %v, want %s", err, tt.want)
			case tt.want != "" && fmt.Sprint(b.All()) != before:
				t.Errorf("refused, and yet %v", b.All())
			}
			again, err := Open(path, nil)
			if err != nil || fmt.Sprint(again.All()) != fmt.Sprint(b.All()) {
				t.Errorf("read again: %v %v, was %v", again.All(), err, b.All())
			}
			if _, err := b.Release("a", "nobody"); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Publish("b", Of(ports(tt.first))); err != nil {
				t.Errorf("after a has gone: %v", err)
			}
		})
	}
}

func TestUnchangedWritesNothing(t *testing.T) {
	b, err := Open(filepath.Join(t.TempDir(), "hostports.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if changed, err := b.Publish("a", Of(ports("8080:80"))); err != nil || changed != want {
			t.Errorf("time %d: changed %v, %v", i, changed, err)
		}
	}
	if changed, err := b.Publish("b", nil); err != nil || changed {
		t.Errorf("a pod without ports: changed %v, %v", changed, err)
	}
}

func TestRules(t *testing.T) {
	pods := map[string][]Port{
		"a": Of(ports("8080:80 udp/53:5353")), "b": Of(ports("192.0.2.1/80:8080 2001:db8::1/80:8080 0.0.0.0/81:81 ::/82:82")), "unknown": Of(ports("9:9")),
	}
	for family, tt := range map[knftables.Family]struct{ a, b, services, want string }{
		knftables.IPv4Family: {"10.42.0.2", "10.42.0.3", "10.43.0.0/16", `
chain hostport-tcp/80/192.0.2.1: meta l4proto tcp dnat to 10.42.0.3:8080
chain hostport-tcp/8080: meta l4proto tcp dnat to 10.42.0.2:80
chain hostport-tcp/81: meta l4proto tcp dnat to 10.42.0.3:81
chain hostport-udp/53: meta l4proto udp dnat to 10.42.0.2:5353
chain hostports-output: jump hostports
chain hostports-prerouting: jump hostports
chain hostports: fib daddr type local ip daddr != 10.43.0.0/16 meta l4proto . th dport vmap @hostports; fib daddr type local ip daddr . meta l4proto . th dport vmap @hostport-ips
hostport-ips 192.0.2.1 . tcp . 80 : goto hostport-tcp/80/192.0.2.1
hostports tcp . 8080 : goto hostport-tcp/8080
hostports tcp . 81 : goto hostport-tcp/81
hostports udp . 53 : goto hostport-udp/53`},
		knftables.IPv6Family: {"fd42::2", "fd42::3", "fd43::/112", `
chain hostport-tcp/80/2001_db8__1: meta l4proto tcp dnat to [fd42::3]:8080
chain hostport-tcp/8080: meta l4proto tcp dnat to [fd42::2]:80
chain hostport-tcp/82: meta l4proto tcp dnat to [fd42::3]:82
chain hostport-udp/53: meta l4proto udp dnat to [fd42::2]:5353
chain hostports-output: jump hostports
chain hostports-prerouting: jump hostports
chain hostports: fib daddr type local ip6 daddr != { fd43::/112, ::1, fe80::/10 } meta l4proto . th dport vmap @hostports; fib daddr type local ip6 daddr . meta l4proto . th dport vmap @hostport-ips
hostport-ips 2001:db8::1 . tcp . 80 : goto hostport-tcp/80/2001_db8__1
hostports tcp . 8080 : goto hostport-tcp/8080
hostports tcp . 82 : goto hostport-tcp/82
hostports udp . 53 : goto hostport-udp/53`},
	} {
		t.Run(string(family), func(t *testing.T) {
			addrs := map[string]netip.Addr{"a": netip.MustParseAddr(tt.a), "b": netip.MustParseAddr(tt.b)}
			services := netip.MustParsePrefix(tt.services)
			s := nft.NewState()
			Rules(s, family, pods, addrs, services)
			if got := text(s); got != strings.TrimSpace(tt.want) {
				t.Errorf("have\n%s\nwant%s", got, tt.want)
			}
			s = nft.NewState()
			Rules(s, family, nil, addrs, services)
			if len(s.Chains)+len(s.Sets) != 0 {
				t.Errorf("rules without ports: %v", s)
			}
		})
	}
}

func text(s nft.State) string {
	var have []string
	for name, chain := range s.Chains {
		have = append(have, "chain "+name+": "+strings.Join(chain.Rules, "; "))
	}
	for name, set := range s.Sets {
		for k, v := range set.Elements {
			have = append(have, name+" "+k+" : "+v)
		}
	}
	slices.Sort(have)
	return strings.Join(have, "\n")
}

func TestStaleFlows(t *testing.T) {
	addrs := map[string]netip.Addr{"a": netip.MustParseAddr("10.42.0.2"), "b": netip.MustParseAddr("10.42.0.3")}
	before, now := map[string][]Port{"a": Of(ports("udp/53:53 udp/99:99"))}, map[string][]Port{"b": Of(ports("udp/53:53")), "a": Of(ports("udp/99:99"))}
	want := targets(knftables.IPv4Family, now, addrs)
	f := staleUDP{ports: changedPorts(targets(knftables.IPv4Family, before, addrs), want), want: want, local: map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true}}
	for _, tt := range []struct {
		to, from    string // where the client sent, who answers
		port, reply uint16
		proto       uint8
		stale       bool
	}{
		{"192.0.2.1", "10.42.0.2", 53, 53, unix.IPPROTO_UDP, true}, // the pod that is gone
		{"192.0.2.1", "10.42.0.3", 53, 53, unix.IPPROTO_UDP, false},
		{"192.0.2.1", "192.0.2.1", 53, 53, unix.IPPROTO_UDP, true}, // nobody, before it was published
		{"192.0.2.1", "10.42.0.2", 99, 99, unix.IPPROTO_UDP, false},
		{"192.0.2.1", "10.42.0.2", 53, 53, unix.IPPROTO_TCP, false},
		{"10.43.0.10", "10.43.0.10", 53, 53, unix.IPPROTO_UDP, false},
		{"198.51.100.1", "198.51.100.1", 53, 53, unix.IPPROTO_UDP, false},
	} {
		flow := &netlink.ConntrackFlow{}
		flow.Forward.DstIP, flow.Forward.DstPort, flow.Forward.Protocol = net.ParseIP(tt.to), tt.port, tt.proto
		flow.Reverse.SrcIP, flow.Reverse.SrcPort = net.ParseIP(tt.from), tt.reply
		if f.MatchConntrackFlow(flow) != tt.stale {
			t.Errorf("%+v", tt)
		}
	}
}
