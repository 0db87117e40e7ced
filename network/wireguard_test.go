package network_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// wireGuard is the process that is WireGuard on the machine, 0 if there is none.
func (m *machine) wireGuard() (found int) {
	m.lab.t.Helper()
	for _, text := range strings.Fields(m.lab.ip("netns", "pids", m.ns)) {
		env, err := os.ReadFile("/proc/" + text + "/environ")
		if err != nil || !bytes.Contains(env, []byte("NETT_ROLE=wireguard")) {
			continue
		}
		pid, err := strconv.Atoi(text)
		if err != nil || found != 0 {
			m.lab.t.Fatalf("processes %d and %s are WireGuard: %v", found, text, err)
		}
		found = pid
	}
	return found
}

// withoutKernel makes the next start of WireGuard one where the kernel has none: the device is
// another's already.
func (m *machine) withoutKernel() {
	m.lab.t.Helper()
	m.run("sh", "-c", "ip link show rookery-wg >/dev/null 2>&1 || ip tuntap add rookery-wg mode tun")
}

// A peer that lives, and whose WireGuard is not let through, is named.
func TestBlockedWireGuardIsNamed(t *testing.T) {
	l := newLabOf(t, 2, "wireguard", "4")
	h1, h2 := l.hosts[0], l.hosts[1]
	for _, m := range l.hosts {
		m.withoutKernel()
		m.up()
	}
	names := func(of *machine, want string) {
		t.Helper()
		eventually(t, 2*patience, func() string { // who only answers begins after 10 s, and gives up after 11 s more
			if got := of.ask(request{Verb: "silent"}); got != want {
				return fmt.Sprintf("%s says that %q does not answer, want %q", of.name, got, want)
			}
			return ""
		})
	}
	h1.run("nft", "add table ip others; add chain ip others in { type filter hook input priority 0; }; add rule ip others in udp dport 51820 drop")
	l.peers()
	names(h1, "h2")
	names(h2, "h1")
	h1.run("nft", "delete table ip others")
	a, b := h1.pod("a"), h2.pod("b")
	eventually(t, patience, func() string { return want(a.dial("tcp", on(b.addr, 8080), 1), "b") })
	names(h1, "")
	names(h2, "")
}

// Where the kernel has no WireGuard, the process that is it lives on while the daemon does not, is
// taken over by the next one, replaced when it dies or is to be another, and ended when it is not wanted any more.
func TestWireGuardOutlivesTheDaemon(t *testing.T) {
	l := newLabOf(t, 2, "wireguard", "46")
	h1, h2 := l.hosts[0], l.hosts[1]
	for _, m := range l.hosts {
		m.withoutKernel()
		m.up()
		if m.wireGuard() == 0 {
			t.Fatalf("no process is WireGuard on %s", m.name)
		}
	}
	l.peers()
	a, b := h1.pod("a"), h2.pod("b")
	reach := func(when string) {
		t.Helper()
		for i := range a.addrs {
			eventually(t, patience, func() string {
				return want(a.dial("tcp", on(b.addrs[i], 8080), 1), "b") + want(b.dial("tcp", on(a.addrs[i], 8080), 1), "a")
			})
		}
		if t.Failed() {
			t.Fatal(when)
		}
	}
	reach("at first")

	before := h2.wireGuard()
	h2.kill()
	only(t, a.dial("tcp", on(b.addr, 8080), 20), "b "+a.addr)
	only(t, b.dial("tcp", on(a.addr, 8080), 20), "a "+b.addr)
	h2.up()
	l.peers()
	only(t, a.dial("tcp", on(b.addr, 8080), 20), "b "+a.addr)
	if now := h2.wireGuard(); now != before {
		t.Errorf("process %d is WireGuard after a restart of the daemon, was %d", now, before)
	}

	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	reach("after WireGuard was killed")
	if now := h2.wireGuard(); now == 0 || now == before {
		t.Errorf("process %d is WireGuard, and %d was killed", now, before)
	}

	if err := syscall.Kill(h2.wireGuard(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	before = h2.wireGuard()
	h2.kill()
	h2.up() // takes until it is known that the process hangs
	l.peers()
	reach("after WireGuard hung")
	if now := h2.wireGuard(); now == before {
		t.Errorf("process %d, which hangs, is still WireGuard", now)
	}

	before = h2.wireGuard()
	h2.kill()
	var err error
	if h2.key, err = wgtypes.GeneratePrivateKey(); err != nil {
		t.Fatal(err)
	}
	h2.up()
	l.peers()
	reach("with another key")
	if now := h2.wireGuard(); now == before {
		t.Errorf("process %d is WireGuard with the old key", now)
	}

	for _, m := range l.hosts {
		m.ask(request{Verb: "use", Backend: "vxlan"})
	}
	reach("over vxlan")
	for _, m := range l.hosts { // the old one is ended first, which still lingers
		m.withoutKernel()
		m.ask(request{Verb: "use", Backend: "wireguard"})
	}
	reach("over wireguard again")
	h2.ask(request{Verb: "clean"})
	eventually(t, patience, func() string {
		if pid := h2.wireGuard(); pid != 0 {
			return fmt.Sprintf("process %d is still WireGuard", pid)
		}
		return ""
	})
}
