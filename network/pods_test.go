package network_test

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func only(t *testing.T, got map[string]int, want string) {
	t.Helper()
	if len(got) != 1 || got[want] == 0 {
		t.Errorf("got %v, want only %q", got, want)
	}
}

func TestPodsReachEachOther(t *testing.T) {
	for _, backend := range []string{"wireguard", "vxlan", "direct"} {
		for _, families := range []string{"4", "6", "64"} {
			t.Run(backend+" "+families, func(t *testing.T) {
				l := newLabOf(t, 3, backend, families)
				h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
				h1.up()
				h2.up()
				l.peers()
				a, b, c := h1.pod("a"), h1.pod("b"), h2.pod("c")
				for i := range families {
					reachEachOther(t, a.addrs[i], b.addrs[i], c.addrs[i], a, b, c)
					if backend != "direct" { // where packets have no other sign of who sent them
						strangerIsNoPod(t, outside, a, a.addrs[i], c.addrs[i])
					}
				}

				// A dead peer's pods are refused at once, and are back with it.
				// (Asked by another pod: the kernel tells one client of only so many errors a second.)
				h1.ask(request{Verb: "peers"})
				for i := range families {
					only(t, b.dial("tcp", on(c.addrs[i], 8080), 1), "error: "+unreachable(c.addrs[i]))
				}
				l.peers()
				for i := range families {
					only(t, b.dial("tcp", on(c.addrs[i], 8080), 1), "c "+b.addrs[i])
				}

				h1.ask(request{Verb: "detach", UID: "b"})
				h1.ask(request{Verb: "detach", UID: "b"})
				for i := range families { // an ICMP error may be lost, and the kernel limits how many it sends
					soon(t, "to a pod that is gone", func() map[string]int { return c.dial("tcp", on(b.addrs[i], 8080), 1) }, "error: "+unreachable(b.addrs[i]))
				}
			})
		}
	}
}

// on is a port at an address.
func on(addr string, port int) string { return net.JoinHostPort(addr, strconv.Itoa(port)) }

// unreachable is what the kernel says of an address that leads nowhere.
func unreachable(addr string) string {
	return byFamily(addr)("no route to host", "network is unreachable")
}

func reachEachOther(t *testing.T, ofA, ofB, ofC string, a, b, c *pod) {
	h1, h2 := a.m, c.m
	// Other addresses of the ranges of a's peer, and of a peer that there is not.
	nobody, stranger, nowhere := "10.42.1.200", "10.42.1.77", "10.42.9.9"
	if strings.Contains(ofA, ":") {
		nobody, stranger, nowhere = "fd42:0:0:1::200", "fd42:0:0:1::77", "fd42:0:0:9::9"
	}
	for _, step := range []struct {
		name string
		got  map[string]int
		want string
	}{
		{"to a pod of the same peer", a.dial("tcp", on(ofB, 8080), 1), "b " + ofA},
		{"to a pod of another peer", a.dial("tcp", on(ofC, 8080), 3), "c " + ofA},
		{"and back", c.dial("tcp", on(ofA, 8080), 3), "a " + ofC},
		{"by UDP", c.dial("udp", on(ofA, 8080), 1), "a " + ofC},
		{"from the machine to its own pod", h1.dial("tcp", on(ofA, 8080), 1), "a " + h1.own(ofA)},
		{"from the machine to another peer's pod", h1.dial("tcp", on(ofC, 8080), 1), "c " + h1.own(ofC)},
		{"from the machine under its own address", h1.dial("tcp", on(ofC, 8080), 1, "NETT_FROM="+h1.at(ofC)), "c " + h1.own(ofC)},
		{"to an address without a pod", a.dial("tcp", on(nobody, 8080), 1), "error: " + unreachable(nobody)},
		{"to a range without a peer", a.dial("tcp", on(nowhere, 8080), 1), "error: " + unreachable(nowhere)},
		{"to another peer's own address", a.dial("tcp", on(h2.own(ofC), 9), 1), "error: connection refused"},
		{"out of the cluster", a.dial("tcp", on(h2.at(ofC), 9), 1), "error: connection refused"},
	} {
		t.Run(step.name, func(t *testing.T) { only(t, step.got, step.want) })
	}
	// A pod that takes its neighbour's address gets no answer, and nor does the neighbour.
	host := netip.MustParseAddr(stranger)
	a.run("ip", "addr", "add", netip.PrefixFrom(host, host.BitLen()).String(), "dev", "eth0", "nodad")
	only(t, a.dial("tcp", on(ofC, 8080), 1, "NETT_FROM="+stranger), "error: timeout")
	table := "ip"
	if host.Is6() {
		table = "ip6"
	}
	// It is noted, and it alone: what a kernel says of its own accord is no forgery.
	noted := regexp.MustCompile(`"rk[0-9a-f]*" \. (\S+)`).FindAllStringSubmatch(h1.run("nft", "list", "set", table, "rookery", "refused-source"), -1)
	if len(noted) != 1 || noted[0][1] != stranger {
		t.Errorf("forged sources are noted as %q, want %s alone", noted, stranger)
	}
}

// strangerIsNoPod sends to a pod from a machine that is no peer, by a peer, with the cluster's own addresses.
func strangerIsNoPod(t *testing.T, outside *machine, a *pod, ofA, ofC string) {
	t.Helper()
	of := byFamily(ofA)
	outside.run("ip", "route", "add", ofA, "via", a.m.at(ofA))
	for _, source := range []string{ofC, a.m.own(ofA), of("10.43.0.77", "fd43::77")} {
		before := a.datagrams(ofA)
		only(t, a.m.dial("udp", on(ofA, 8080), 1), "a "+a.m.own(ofA))
		if got := a.datagrams(ofA) - before; got != 1 {
			t.Fatalf("%d datagrams were counted for one", got)
		}
		outside.run("ip", "addr", "add", alone(source), "dev", "lo", "nodad")
		only(t, outside.dial("udp", on(ofA, 8080), 1, briefly, "NETT_FROM="+on(source, 5555)), "error: timeout")
		if got := a.datagrams(ofA) - before; got != 1 {
			t.Errorf("a pod got what a stranger sent as %s", source)
		}
		if noted := a.m.run("nft", "list", "set", of("ip", "ip6"), "rookery", "refused-source"); !strings.Contains(noted, `"eth0" . `+source) {
			t.Errorf("what came from outside as %s is not noted: %s", source, noted)
		}
	}
}

// datagrams are those that the pod's sockets have been given, in the family of like.
func (p *pod) datagrams(like string) (n int) {
	p.m.lab.t.Helper()
	if strings.Contains(like, ":") {
		_, rest, _ := strings.Cut(p.run("cat", "/proc/net/snmp6"), "Udp6InDatagrams")
		fmt.Sscan(rest, &n)
		return n
	}
	lines := strings.SplitAfter(p.run("cat", "/proc/net/snmp"), "\nUdp: ")
	fmt.Sscan(lines[2], &n)
	return n
}

func TestRestartAdoptsEverything(t *testing.T) {
	for _, way := range []string{"vxlan 4", "vxlan 46", "wireguard 46"} {
		backend, families, _ := strings.Cut(way, " ")
		t.Run(way, func(t *testing.T) { restartAdoptsEverything(t, newLabOf(t, 2, backend, families)) })
	}
}

func restartAdoptsEverything(t *testing.T, l *lab) {
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	l.peers()
	a, b, c := h1.pod("a"), h1.pod("b"), h2.pod("c")
	services, slices := l.hello(a, c)
	l.put(services, slices)
	eventually(t, patience, func() string {
		return want(b.dial("tcp4", clusterIP+":80", enough), "a", "c")
	})
	settled(h1) // one family's rules are written after the other's
	state := h1.kernel
	before := state()
	h1.kill()
	if got := want(b.dial("tcp4", clusterIP+":80", enough), "a", "c"); got != "" {
		t.Errorf("while the daemon is away: %s", got)
	}
	h1.up(request{Services: services, Slices: slices})
	if got := state(); got != before {
		t.Errorf("the start changed something:\n%s\nbefore:\n%s", got, before)
	}
	l.peers()
	if again := h1.ask(request{Verb: "attach", UID: "a", PID: a.pid}); again != strings.Join(a.addrs, " ") {
		t.Errorf("attached again as %s, was %s", again, a.addrs)
	}
	if got := state(); got != before {
		t.Errorf("attaching again changed something:\n%s\nbefore:\n%s", got, before)
	}
	// The first write of the Services' rules must have changed nothing, and not be missing either:
	// another change comes after it.
	l.put(l.hello(a))
	eventually(t, patience, func() string { return want(b.dial("tcp4", clusterIP+":80", enough), "a") })
	eventually(t, patience, func() string { // the daemon says so only afterwards
		if n := strings.Count(h1.stderr.String(), "nftables written"); n != len(h1.ranges) {
			return fmt.Sprintf("%d writes since the restart, want the last change's only, one of each family:\n%s", n, h1.stderr.String())
		}
		return ""
	})

	h1.ask(request{Verb: "reconcile", UIDs: []string{"a"}})
	soon(t, "a pod that is gone", func() map[string]int { return a.dial("tcp4", b.addr+":8080", 1) }, "error: no route to host")
	if d := h1.pod("d"); d.addr == b.addr {
		t.Errorf("the address %s was given out again at once", d.addr)
	}
}

func TestCleanLeavesNothing(t *testing.T) {
	l := newLabOf(t, 1, "wireguard", "46")
	h1 := l.hosts[0]
	state := func() string {
		out := h1.run("nft", "list", "ruleset") + h1.run("ip", "-br", "link") + h1.run("ip", "-4", "route", "show", "table", "all") + h1.run("ip", "rule")
		for _, line := range strings.Split(h1.run("ip", "-6", "route", "show", "table", "all"), "\n") {
			if !strings.Contains(line, "dev eth0") { // where the kernel has things of its own to do
				out += line + "\n"
			}
		}
		return out
	}
	h1.run("nft", "add", "table", "ip", "others")
	before := state()
	h1.up()
	a := h1.pod("a")
	l.put(l.hello(a))
	if state() == before {
		t.Fatal("nothing was set up")
	}
	h1.ask(request{Verb: "clean"})
	if got := state(); got != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", got, before)
	}
	if _, err := os.Stat(h1.config().Dir + "/ipam.json"); err == nil {
		t.Error("ipam.json is still there")
	}
}

// enough connections leave none of two or three endpoints out: the kernel throws dice for
// each, and one of three is missed by so many once in 10^17 times.
const enough = 100

// want checks that exactly these pods answered.
func want(got map[string]int, names ...string) string {
	seen := map[string]bool{}
	for line := range got {
		seen[strings.Fields(line)[0]] = true
	}
	wanted := map[string]bool{}
	for _, n := range names {
		wanted[n] = true
	}
	if maps.Equal(seen, wanted) {
		return ""
	}
	return fmt.Sprintf("%v answered, want %v", got, names)
}
