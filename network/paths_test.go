package network_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rundigitalplatform/rookery/network"
)

// narrow is a lab of two machines with less than their devices' MTU between them, and nobody
// who says so.
type narrow struct {
	*lab
	shrink func(mtu int) // changes what fits between them
	honest func()        // from now on routers say what they drop
}

// behindRouter puts a router before h2, whose link to it carries less than h2 knows. ICMP errors
// are dropped, and so are fragments, as firewalls do.
func behindRouter(l *lab, families string) narrow {
	h2, r := l.hosts[1], l.name+"-r"
	l.namespace(r)
	l.ip("-n", h2.ns, "link", "delete", "eth0")
	l.ip("-n", l.name+"-lan", "link", "add", "lr", "type", "veth", "peer", "name", "eth0", "netns", r)
	l.ip("-n", l.name+"-lan", "link", "set", "lr", "master", "br0", "up")
	l.ip("-n", r, "link", "add", "eth1", "type", "veth", "peer", "name", "eth0", "netns", h2.ns)
	for _, dev := range []string{"eth0", "eth1"} {
		l.ip("-n", r, "link", "set", dev, "up")
	}
	l.ip("-n", h2.ns, "link", "set", "eth0", "up")
	for _, args := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		run(l.t, "nsenter", "--net=/run/netns/"+r, "--", "sh", "-c", "echo 1 > /proc/sys/"+strings.ReplaceAll(args, ".", "/"))
	}
	join := func(here, there, far, prefix string) {
		l.ip("-n", r, "addr", "add", here+prefix, "dev", "eth0", "nodad")
		l.ip("-n", r, "addr", "add", there+prefix, "dev", "eth1", "nodad")
		l.ip("-n", h2.ns, "addr", "add", far+prefix, "dev", "eth0", "nodad")
		l.ip("-n", h2.ns, "route", "add", "default", "via", there)
		l.ip("-n", l.hosts[0].ns, "route", "add", "default", "via", here)
	}
	h2.addr, h2.other = netip.MustParseAddr("192.168.78.2"), netip.MustParseAddr("fd78::2")
	if strings.Contains(families, "4") {
		join("192.168.77.254", "192.168.78.254", h2.addr.String(), "/24")
	}
	if strings.Contains(families, "6") {
		join("fd77::fe", "fd78::fe", h2.other.String(), "/64")
	}
	switch families {
	case "4":
		h2.other = netip.Addr{}
	case "6":
		h2.addr, h2.other = h2.other, netip.Addr{}
	}
	run(l.t, "nsenter", "--net=/run/netns/"+r, "--", "nft", `add table inet silent; add chain inet silent out { type filter hook output priority 0; };
		add rule inet silent out icmp type destination-unreachable drop; add rule inet silent out icmpv6 type packet-too-big drop`)
	for _, m := range l.hosts {
		m.run("nft", `add table inet whole; add chain inet whole in { type filter hook prerouting priority -450; };
			add rule inet whole in ip frag-off & 0x3fff != 0 drop; add rule inet whole in exthdr frag exists drop`)
	}
	return narrow{lab: l,
		shrink: func(mtu int) { l.ip("-n", r, "link", "set", "eth1", "mtu", fmt.Sprint(mtu)) },
		honest: func() { run(l.t, "nsenter", "--net=/run/netns/"+r, "--", "nft", "delete", "table", "inet", "silent") },
	}
}

// onSwitch has one network segment, with a port that carries less.
func onSwitch(l *lab, _ string) narrow {
	for _, m := range l.hosts { // virtual devices pass what is to be segmented on as it is, whatever their MTU
		m.run("ip", "link", "set", "eth0", "gso_max_segs", "1")
	}
	return narrow{lab: l, shrink: func(mtu int) { l.ip("-n", l.name+"-lan", "link", "set", "l2", "mtu", fmt.Sprint(mtu)) }}
}

// deaf makes the machines drop echo requests, so that no path MTU is found, or ends that.
func (n narrow) deaf(yes bool) {
	for _, m := range n.hosts {
		if !yes {
			m.run("nft", "delete", "table", "inet", "deaf")
			continue
		}
		m.run("nft", `add table inet deaf; add chain inet deaf in { type filter hook input priority 0; };
			add rule inet deaf in icmp type echo-request drop; add rule inet deaf in icmpv6 type echo-request drop`)
	}
}

// path is what a machine knows of the way to the other one; with look it looks first.
func (m *machine) path(look bool) network.Path {
	m.lab.t.Helper()
	var all []network.Path
	if err := json.Unmarshal([]byte(m.ask(request{Verb: "paths", Look: look})), &all); err != nil || len(all) != 1 {
		m.lab.t.Fatalf("paths: %v (%v)", all, err)
	}
	return all[0]
}

// transfer sends a megabyte through a new connection, and returns what waits for its arrival.
func (p *pod) transfer(to string) (arrived func()) {
	t := p.m.lab.t
	t.Helper()
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", p.pid), "--", os.Args[0])
	cmd.Env = append(os.Environ(), "NETT_ROLE=blast", "NETT_TARGET="+on(to, 8081), fmt.Sprint("NETT_COUNT=", 1<<20))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = cmd.Process.Kill() // it may have ended meanwhile
			<-done
		}
	})
	return func() {
		t.Helper()
		eventually(t, patience, func() string {
			select {
			case err := <-done:
				if ended = true; err != nil {
					t.Fatalf("send to %s: %v: %s", to, err, said.String())
				}
				return ""
			default:
				return fmt.Sprintf("a megabyte from %s to %s has not arrived: %s", p.uid, to, p.sockets(to))
			}
		})
	}
}

// sockets are the pod's connections to an address, as the kernel sees them.
func (p *pod) sockets(to string) string {
	p.m.lab.t.Helper()
	if strings.Contains(to, ":") {
		to = "[" + to + "]"
	}
	return p.run("ss", "-tin", "dst", to)
}

// stalled waits until the kernel has sent again and again, and not a byte has arrived in order.
func (p *pod) stalled(to string) {
	p.m.lab.t.Helper()
	eventually(p.m.lab.t, patience, func() string {
		state := p.sockets(to)
		again, arrived := figure(state, `retrans:\d+/(\d+)`), figure(state, `bytes_acked:(\d+)`)
		if again >= 3 && arrived <= 1 { // the SYN counts as one
			return ""
		}
		return "it does not stall: " + state
	})
}

// figure is the number that a pattern finds in what ss says; 0 if it does not say it.
func figure(state, pattern string) int {
	if m := regexp.MustCompile(pattern).FindStringSubmatch(state); m != nil {
		n, _ := strconv.Atoi(m[1]) // the pattern is one of digits
		return n
	}
	return 0
}

// routed is the MTU of a machine's route to a pod, "" for that of the device.
func (m *machine) routed(to string) string {
	m.lab.t.Helper()
	_, rest, _ := strings.Cut(strings.Join(strings.Fields(m.run("ip", "route", "get", to)), " "), " mtu ")
	mtu, _, _ := strings.Cut(strings.TrimPrefix(rest, "lock "), " ")
	return mtu
}

// Where a path carries less than the devices at its ends, and nobody says so, large segments
// vanish until its MTU is looked for; then what has stalled goes on, and what begins is whole.
func TestPathMTU(t *testing.T) {
	for _, c := range []struct {
		backend, families string
		between           func(*lab, string) narrow
		room              int    // what is left of 1400 for pods
		more              [2]int // what gets from each machine to the other nevertheless
	}{
		{"wireguard", "4", behindRouter, 1328, [2]int{}},
		{"wireguard", "64", behindRouter, 1328, [2]int{}},
		{"wireguard", "6", behindRouter, 1312, [2]int{}},
		{"vxlan", "4", behindRouter, 1350, [2]int{}},
		{"vxlan", "46", behindRouter, 1350, [2]int{}},
		{"vxlan", "6", behindRouter, 1330, [2]int{}},
		{"direct", "46", onSwitch, 1400, [2]int{0, 4}}, // a virtual port takes what could be a VLAN's tag
	} {
		t.Run(c.backend+" "+c.families, func(t *testing.T) {
			l := newLabOf(t, 2, c.backend, c.families)
			n := c.between(l, c.families)
			h1, h2 := l.hosts[0], l.hosts[1]
			n.shrink(1400)
			n.deaf(true)
			h1.up()
			h2.up()
			l.peers()
			a, b := h1.pod("a"), h2.pod("b")
			for _, p := range []*pod{a, b} { // nothing but the routes shall help
				p.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_mtu_probing")
			}
			var held []func()
			for _, to := range b.addrs {
				held = append(held, a.transfer(to))
			}
			for _, to := range b.addrs {
				a.stalled(to)
			}
			eventually(t, patience, func() string {
				if p := h1.path(false); !p.Silent || p.MTU != 0 {
					return fmt.Sprintf("found without answers: %+v", p)
				}
				return ""
			})
			n.deaf(false)
			for i, m := range l.hosts {
				p := m.path(true)
				if p.MTU != 1400+c.more[i] || p.Silent || p.Room != c.room+c.more[i] {
					t.Errorf("%s found %+v", m.name, p)
				}
				for _, to := range [][]string{b.addrs, a.addrs}[i] {
					if got := m.routed(to); got != fmt.Sprint(c.room+c.more[i]) {
						t.Errorf("the route to %s has MTU %q, want %d", to, got, c.room+c.more[i])
					}
				}
			}
			for i, to := range b.addrs {
				held[i]()
				a.transfer(to)()
				b.transfer(a.addrs[i])()
			}
			n.shrink(1500)
			for i, m := range l.hosts {
				to := [][]string{b.addrs, a.addrs}[i]
				if p := m.path(true); p.MTU != 0 {
					t.Errorf("%s found %+v after it grew", m.name, p)
				}
				for _, to := range to {
					if got := m.routed(to); got != "" {
						t.Errorf("the route to %s has still MTU %s", to, got)
					}
				}
			}
		})
	}
}

// Where nothing is found, TCP in pods finds by itself that its segments vanish.
func TestPathMTUUnknown(t *testing.T) {
	n := behindRouter(newLabOf(t, 2, "wireguard", "46"), "46")
	h1, h2 := n.hosts[0], n.hosts[1]
	n.shrink(1400)
	n.deaf(true)
	h1.up()
	h2.up()
	n.peers()
	a, b := h1.pod("a"), h2.pod("b")
	var arrived []func()
	for i := range b.addrs {
		arrived = append(arrived, a.transfer(b.addrs[i]), b.transfer(a.addrs[i]))
	}
	for _, wait := range arrived {
		wait()
	}
	if p := h1.path(false); p.MTU != 0 {
		t.Errorf("h1 found %+v", p)
	}
}

// A path that shrinks while a connection uses it is looked at again as soon as a router says
// so, and the connection goes on.
func TestPathMTUShrinks(t *testing.T) {
	// Over IPv4 the kernel's WireGuard and VXLAN let routers split what is too large.
	for _, c := range []struct{ backend, families string }{{"wireguard", "64"}, {"vxlan", "6"}} {
		t.Run(c.backend, func(t *testing.T) {
			n := behindRouter(newLabOf(t, 2, c.backend, c.families), c.families)
			h1, h2 := n.hosts[0], n.hosts[1]
			n.honest()
			h1.up()
			h2.up()
			n.peers()
			a, b := h1.pod("a"), h2.pod("b")
			if p := h1.path(true); p.MTU != 0 || p.Silent {
				t.Fatalf("found %+v", p)
			}
			n.shrink(1380)
			var arrived []func()
			for _, to := range b.addrs {
				arrived = append(arrived, a.transfer(to))
			}
			eventually(t, patience, func() string {
				if p := h1.path(false); p.MTU != 1380 {
					return fmt.Sprintf("h1 knows %+v", p)
				}
				return ""
			})
			for _, wait := range arrived {
				wait()
			}
		})
	}
}
