package network_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// watch counts, on a machine, what comes from others and belongs to a WireGuard session that
// both ends have: responses to its handshakes (type 2), and packets (4). It counts from 0.
func (m *machine) watch() {
	m.lab.t.Helper()
	var b strings.Builder
	b.WriteString("table inet watch\ndelete table inet watch\ntable inet watch {\n")
	for _, o := range m.lab.hosts {
		fmt.Fprintf(&b, "counter %s { }\n", o.name)
	}
	b.WriteString("chain input { type filter hook input priority 0;\n")
	for _, o := range m.lab.hosts {
		fmt.Fprintf(&b, "ip saddr %s udp dport 51820 @th,64,8 { 2, 4 } counter name %s\n", o.addr, o.name)
	}
	b.WriteString("}\n}\n")
	m.run("nft", b.String())
}

// met waits until the machine has a session with each other one, made since watch.
func (m *machine) met() {
	m.lab.t.Helper()
	eventually(m.lab.t, patience, func() string {
		for _, o := range m.lab.hosts {
			if o != m && (!m.counts(o) || !o.counts(m)) {
				return fmt.Sprintf("%s and %s have not met", m.name, o.name)
			}
		}
		return ""
	})
}

func (m *machine) counts(from *machine) bool {
	return !strings.Contains(m.run("nft", "list", "counter", "inet", "watch", from.name), "packets 0 ")
}

// WireGuard's sessions are there before anybody has anything to send: when daemons meet
// first, and when one was killed and comes back, also at another address.
func TestPeersMeetBeforeTheySend(t *testing.T) {
	l := newLab(t, 3, "wireguard")
	h1, h2, h3 := l.hosts[0], l.hosts[1], l.hosts[2]
	for _, m := range l.hosts {
		m.watch()
	}
	for _, m := range l.hosts {
		m.up()
		l.peers()
	}
	for _, m := range l.hosts {
		m.met()
	}
	a, b, c := h1.pod("a"), h2.pod("b"), h3.pod("c")
	reach := func() {
		t.Helper()
		only(t, a.dial("tcp", on(b.addr, 8080), 1), "b "+a.addr)
		only(t, c.dial("tcp", on(b.addr, 8080), 1), "b "+c.addr)
		only(t, c.dial("tcp", on(a.addr, 8080), 1), "a "+c.addr)
	}
	reach()
	for _, at := range []string{"192.168.77.2", "192.168.77.22"} {
		h2.kill()
		h2.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
		h2.run("ip", "addr", "add", at+"/24", "dev", "eth0")
		h2.addr = netip.MustParseAddr(at)
		for _, m := range l.hosts {
			m.watch()
		}
		h2.up()
		l.peers()
		h2.met()
		reach()
	}
}
