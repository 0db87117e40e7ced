package network_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network"
)

// A host port answers under the machine's addresses of both families, or of the one that
// its hostIP says.
func TestHostPortsOfBothFamilies(t *testing.T) {
	l := newLabOf(t, 2, "vxlan", "46")
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	l.peers()
	a := h1.pod("a", port("", "TCP", 8080), port("", "UDP", 8080), port("fd77::1", "TCP", 8081), port("::", "TCP", 8082), port("0.0.0.0", "TCP", 8083))
	b, c := h1.pod("b"), h2.pod("c")
	for _, step := range []struct {
		name string
		got  map[string]int
		want string
	}{
		{"from the LAN", h2.dial("tcp", "[fd77::1]:8080", 2, "NETT_FROM=fd77::2"), "a fd77::2"},
		{"from the LAN by IPv4", h2.dial("tcp", "192.168.77.1:8080", 2, "NETT_FROM=192.168.77.2"), "a 192.168.77.2"},
		{"from the LAN by UDP", h2.dial("udp", "[fd77::1]:8080", 1, "NETT_FROM=fd77::2"), "a fd77::2"},
		{"from the machine", h1.dial("tcp", "[fd77::1]:8080", 2), "a fd77::1"},
		{"from a neighbour", b.dial("tcp", "[fd77::1]:8080", 2), "a " + b.addrs[1]},
		{"from the pod itself", a.dial("tcp", "[fd77::1]:8080", 2), "a fd42:0:0:1::1"},
		{"from another peer's pod", c.dial("tcp", "[fd77::1]:8080", 2), "a fd77::2"},
		{"one address", h2.dial("tcp", "[fd77::1]:8081", 1, "NETT_FROM=fd77::2"), "a fd77::2"},
		{"one address, not another", h1.dial("tcp", "[fd42:0:0:1::1]:8081", 1), "error: connection refused"},
		{"one address, not IPv4", h2.dial("tcp", "192.168.77.1:8081", 1), "error: connection refused"},
		{"IPv6 only", h2.dial("tcp", "[fd77::1]:8082", 1, "NETT_FROM=fd77::2"), "a fd77::2"},
		{"IPv6 only, not IPv4", h2.dial("tcp", "192.168.77.1:8082", 1), "error: connection refused"},
		{"IPv4 only", h2.dial("tcp", "192.168.77.1:8083", 1, "NETT_FROM=192.168.77.2"), "a 192.168.77.2"},
		{"IPv4 only, not IPv6", h2.dial("tcp", "[fd77::1]:8083", 1), "error: connection refused"},
		{"not the loopback", h1.dial("tcp", "[::1]:8080", 1), "error: connection refused"},
		{"the loopback of IPv4", h1.dial("tcp", "127.0.0.1:8080", 1), "a 10.42.1.1"},
	} {
		t.Run(step.name, func(t *testing.T) { only(t, step.got, step.want) })
	}
	// A client that goes on by UDP from the same port is sent to the pod that comes next.
	from := "NETT_FROM=[fd77::2]:5555"
	only(t, h2.dial("udp", "[fd77::1]:8080", 1, from), "a fd77::2")
	h1.ask(request{Verb: "detach", UID: "a"})
	h1.pod("d", port("::", "UDP", 8080))
	only(t, h2.dial("udp", "[fd77::1]:8080", 1, from), "d fd77::2")
}

// What a pod says of neighbours and routers is not heard by the machine.
func TestPodIsNoRouter(t *testing.T) {
	l := newLabOf(t, 1, "direct", "6")
	h1 := l.hosts[0]
	h1.up()
	a := h1.pod("a")
	a.run("ip", "addr", "add", "fe80::66/64", "dev", "eth0", "nodad")
	veth := h1.device(a.addr)
	if got := strings.TrimSpace(h1.run("cat", "/proc/sys/net/ipv6/conf/"+veth+"/accept_ra")); got != "0" {
		t.Errorf("%s accepts router advertisements: %s", veth, got)
	}
	h1.run("sh", "-c", "echo 2 > /proc/sys/net/ipv6/conf/"+veth+"/accept_ra") // the rule alone has to hold
	advertise := func() string {
		cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", a.pid), "--", os.Args[0])
		cmd.Env = append(os.Environ(), "NETT_ROLE=router")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// Whatever came before it on the same device has been handled.
		only(t, a.dial("tcp", on(h1.own(a.addr), 9), 1), "error: connection refused")
		return h1.run("ip", "-6", "route", "show", "default")
	}
	if got := advertise(); got != "" {
		t.Errorf("the pod became the machine's default route: %s", got)
	}
	// It is the rule that kept it out. (The daemon brings it back, soon.)
	h1.run("ip", "addr", "add", "fe80::1/64", "dev", veth, "nodad")
	eventually(t, patience, func() string {
		h1.run("nft", "flush", "chain", "ip6", "rookery", "pod-sources")
		if advertise() == "" {
			return "the advertisement is none that a machine would hear: this test shows nothing"
		}
		return ""
	})
}

// routerRole sends a router advertisement (RFC 4861, 4.2).
func routerRole() error {
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	from, to := &unix.SockaddrInet6{ZoneId: uint32(eth.Index)}, &unix.SockaddrInet6{ZoneId: uint32(eth.Index)}
	from.Addr, to.Addr = netip.MustParseAddr("fe80::66").As16(), netip.MustParseAddr("ff02::1").As16()
	if err := unix.Bind(fd, from); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	packet := make([]byte, 16)
	packet[0], packet[4] = 134, 64
	binary.BigEndian.PutUint16(packet[6:], 1800)
	return unix.Sendto(fd, packet, 0, to)
}

// A machine that begins to forward keeps the default route that a router on its own
// network told it of.
func TestRouterAdvertisementsAreStillTaken(t *testing.T) {
	l := newLabOf(t, 1, "direct", "46")
	h1 := l.hosts[0]
	setting := func(name string) string {
		return strings.TrimSpace(h1.run("cat", "/proc/sys/net/ipv6/conf/"+name))
	}
	// A new namespace begins with what its kernel and its maker have; this is a machine that takes
	// advertisements and does not forward.
	h1.run("sh", "-c", "cd /proc/sys/net/ipv6/conf && echo 0 > all/forwarding && echo 1 > default/accept_ra && echo 1 > eth0/accept_ra")
	h1.run("ip", "link", "add", "none", "type", "veth", "peer", "name", "enon")
	h1.run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/none/accept_ra")
	h1.up()
	a := h1.pod("a")
	veth := h1.device(a.addrs[1])
	for name, want := range map[string]string{
		"all/forwarding": "1", "eth0/accept_ra": "2", "default/accept_ra": "2", "none/accept_ra": "0", "rookery0/accept_ra": "0", veth + "/accept_ra": "0",
	} {
		if got := setting(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if got := h1.run("ip", "-6", "addr", "show", "dev", veth); strings.Contains(got, "fe80") {
		t.Errorf("the pod's device has made itself an address:\n%s", got)
	}
}

// direct needs an address of each machine in each family; what one lacks is said, and the
// other family works.
func TestDirectWithoutTheOtherAddress(t *testing.T) {
	l := newLabOf(t, 2, "direct", "46")
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	h1.ask(request{Verb: "peers", Peers: []network.Peer{h2.peer(true)}})
	h2.other = netip.Addr{} // it has lost it
	_, err := h1.try(request{Verb: "peers", Peers: []network.Peer{h2.peer(true)}})
	if err == nil || !strings.Contains(err.Error(), "the machine h2 has no IPv6 address beside 192.168.77.2") {
		t.Errorf("it is not said: %v", err)
	}
	h2.ask(request{Verb: "peers", Peers: []network.Peer{h1.peer(true)}})
	a, b := h1.pod("a"), h2.pod("b")
	only(t, a.dial("tcp", on(b.addrs[0], 8080), 1), "b "+a.addrs[0])
	only(t, a.dial("tcp", on(b.addrs[1], 8080), 1), "error: "+unreachable(b.addrs[1]))
	// It is no reason to stay with another backend.
	h1.ask(request{Verb: "use", Backend: "vxlan"})
	h1.ask(request{Verb: "use", Backend: "direct"})
	only(t, a.dial("tcp", on(b.addrs[0], 8080), 1), "b "+a.addrs[0])
	only(t, a.dial("tcp", on(b.addrs[1], 8080), 1), "error: "+unreachable(b.addrs[1]))
	// Who is gone leaves nothing, though it was never there as a whole.
	h1.ask(request{Verb: "peers"})
	if got := h1.run("ip", "route", "show", "proto", "82"); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// A machine whose address changes while its daemon runs is reached under the new one.
func TestAddressChanges(t *testing.T) {
	for _, backend := range []string{"wireguard", "vxlan", "direct"} {
		t.Run(backend, func(t *testing.T) {
			l := newLabOf(t, 2, backend, "46")
			h1, h2 := l.hosts[0], l.hosts[1]
			h1.up()
			h2.up()
			l.peers()
			a, b := h1.pod("a"), h2.pod("b")
			reach := func() {
				t.Helper()
				for i := range a.addrs {
					only(t, a.dial("tcp", on(b.addrs[i], 8080), 2), "b "+a.addrs[i])
					only(t, b.dial("tcp", on(a.addrs[i], 8080), 2), "a "+b.addrs[i])
				}
			}
			reach()
			h2.run("ip", "addr", "del", "192.168.77.2/24", "dev", "eth0")
			h2.run("ip", "addr", "add", "192.168.77.22/24", "dev", "eth0")
			h2.addr = netip.MustParseAddr("192.168.77.22")
			h2.ask(request{Verb: "address", Address: h2.addr})
			h2.ask(request{Verb: "address", Address: h2.addr}) // once more changes nothing
			l.peers()
			reach()
			if _, err := h2.try(request{Verb: "address", Address: netip.MustParseAddr("192.168.77.33")}); err == nil || !strings.Contains(err.Error(), "has no address 192.168.77.33") {
				t.Errorf("an address that the machine has not: %v", err)
			}
			reach()
		})
	}
}
