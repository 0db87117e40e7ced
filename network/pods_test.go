package network_test

import (
	"fmt"
	"maps"
	"os"
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
		t.Run(backend, func(t *testing.T) {
			l := newLab(t, 2, backend)
			h1, h2 := l.hosts[0], l.hosts[1]
			h1.up()
			h2.up()
			l.peers()
			a, b, c := h1.pod("a"), h1.pod("b"), h2.pod("c")
			for _, step := range []struct {
				name string
				got  map[string]int
				want string
			}{
				{"to a pod of the same peer", a.dial("tcp4", b.addr+":8080", 1), "b " + a.addr},
				{"to a pod of another peer", a.dial("tcp4", c.addr+":8080", 3), "c " + a.addr},
				{"and back", c.dial("tcp4", a.addr+":8080", 3), "a " + c.addr},
				{"by UDP", c.dial("udp4", a.addr+":8080", 1), "a " + c.addr},
				{"from the machine to its own pod", h1.dial("tcp4", a.addr+":8080", 1), "a 10.42.1.1"},
				{"from the machine to another peer's pod", h1.dial("tcp4", c.addr+":8080", 1), "c 10.42.1.1"},
				{"from the machine under its own address", h1.dial("tcp4", c.addr+":8080", 1, "NETT_FROM=192.168.77.1"), "c 10.42.1.1"},
				{"to an address without a pod", a.dial("tcp4", "10.42.1.200:8080", 1), "error: no route to host"},
				{"to a range without a peer", a.dial("tcp4", "10.42.9.9:8080", 1), "error: no route to host"},
				{"to another peer's own address", a.dial("tcp4", "10.42.2.1:9", 1), "error: connection refused"},
				{"out of the cluster", a.dial("tcp4", "192.168.77.2:9", 1), "error: connection refused"},
			} {
				t.Run(step.name, func(t *testing.T) { only(t, step.got, step.want) })
			}

			// A pod that takes its neighbour's address gets no answer, and nor does the neighbour.
			nsenter := fmt.Sprintf("--net=/proc/%d/ns/net", a.pid)
			run(t, "nsenter", nsenter, "--", "ip", "addr", "add", "10.42.1.77/32", "dev", "eth0")
			only(t, a.dial("tcp4", c.addr+":8080", 1, "NETT_FROM=10.42.1.77"), "error: timeout")

			// A dead peer's pods are refused at once, and are back with it.
			// (Asked by another pod: the kernel tells one client of only so many errors a second.)
			h1.ask(request{Verb: "peers"})
			only(t, b.dial("tcp4", c.addr+":8080", 1), "error: no route to host")
			l.peers()
			only(t, b.dial("tcp4", c.addr+":8080", 1), "c "+b.addr)

			h1.ask(request{Verb: "detach", UID: "b"})
			h1.ask(request{Verb: "detach", UID: "b"})
			only(t, c.dial("tcp4", b.addr+":8080", 1), "error: no route to host")
		})
	}
}

func TestRestartAdoptsEverything(t *testing.T) {
	l := newLab(t, 2, "vxlan")
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	l.peers()
	a, b, c := h1.pod("a"), h1.pod("b"), h2.pod("c")
	services, slices := hello(a, c)
	l.put(services, slices)
	eventually(t, patience, func() string {
		return want(b.dial("tcp4", clusterIP+":80", 8), "a", "c")
	})
	state := func() string {
		return h1.run("nft", "-a", "list", "table", "ip", "rookery") + h1.run("ip", "-o", "link") + h1.run("ip", "route") + h1.run("bridge", "fdb") + h1.run("ip", "neigh", "show", "nud", "permanent")
	}
	before := state()
	h1.kill()
	if got := want(b.dial("tcp4", clusterIP+":80", 8), "a", "c"); got != "" {
		t.Errorf("while the daemon is away: %s", got)
	}
	h1.up(request{Services: services, Slices: slices})
	if got := state(); got != before {
		t.Errorf("the start changed something:\n%s\nbefore:\n%s", got, before)
	}
	l.peers()
	if again := h1.ask(request{Verb: "attach", UID: "a", PID: a.pid}); again != a.addr {
		t.Errorf("attached again as %s, was %s", again, a.addr)
	}
	if got := state(); got != before {
		t.Errorf("attaching again changed something:\n%s\nbefore:\n%s", got, before)
	}
	// The first write of the Services' rules must have changed nothing, and not be missing either:
	// another change comes after it.
	l.put(hello(a))
	eventually(t, patience, func() string { return want(b.dial("tcp4", clusterIP+":80", 8), "a") })
	eventually(t, patience, func() string { // the daemon says so only afterwards
		if n := strings.Count(h1.stderr.String(), "nftables written"); n != 1 {
			return fmt.Sprintf("%d writes since the restart, want the last change's only:\n%s", n, h1.stderr.String())
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
	l := newLab(t, 1, "wireguard")
	h1 := l.hosts[0]
	state := func() string {
		return h1.run("nft", "list", "ruleset") + h1.run("ip", "-br", "link") + h1.run("ip", "-4", "route", "show", "table", "all") + h1.run("ip", "rule")
	}
	h1.run("nft", "add", "table", "ip", "others")
	before := state()
	h1.up()
	a := h1.pod("a")
	l.put(hello(a))
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
