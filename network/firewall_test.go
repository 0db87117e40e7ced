package network_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
)

// docker makes on a machine what Docker's daemon makes: a bridge, rules that translate and
// isolate, and a policy that drops whatever else is forwarded.
const docker = `
set -e
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -t nat -A DOCKER ! -i docker0 -p tcp --dport 8888 -j DNAT --to-destination 172.17.0.2:8080
for iptables in iptables ip6tables; do
	$iptables -N DOCKER-USER
	$iptables -N DOCKER
	$iptables -P FORWARD DROP
	$iptables -A FORWARD -j DOCKER-USER
	$iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
	$iptables -A FORWARD -o docker0 -j DOCKER
	$iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
	$iptables -A DOCKER-USER -j RETURN
done
iptables -A DOCKER -d 172.17.0.2 ! -i docker0 -o docker0 -p tcp --dport 8080 -j ACCEPT
`

// Beside Docker: its rules and its bridge are as they were, its containers reach what they
// did and are reached, and what its policy takes from the pods is said with the cure.
func TestBesideDocker(t *testing.T) {
	l := newLabOf(t, 3, "wireguard", "46")
	h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
	h1.run("sh", "-c", docker)
	others := func() string {
		var out strings.Builder
		for _, table := range []string{"ip filter", "ip nat", "ip6 filter"} {
			out.WriteString(h1.run(append(strings.Fields("nft --stateless list table"), strings.Fields(table)...)...))
		}
		out.WriteString(h1.run("ip", "-o", "addr", "show", "dev", "docker0", "scope", "global"))
		return out.String()
	}
	before := others()
	h1.up()
	h2.up()
	l.peers()
	a, b, c := h1.pod("a"), h1.pod("b"), h2.pod("c")
	container := h1.container(t)

	check := request{Verb: "check", Ranges: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}}
	cures := regexp.MustCompile(`-> (.*), at each start`).FindAllStringSubmatch(h1.ask(check), -1)
	if len(cures) != 2 {
		t.Fatalf("the check says:\n%s", h1.ask(check))
	}
	for i := range a.addrs {
		only(t, a.dial("tcp", on(b.addrs[i], 8080), 1, briefly), "error: timeout")
		only(t, a.dial("tcp", on(c.addrs[i], 8080), 1, briefly), "error: timeout")
	}
	if got := others(); got != before {
		t.Errorf("what was there is changed:\n%s\nbefore:\n%s", got, before)
	}
	for _, cure := range cures {
		h1.run("sh", "-c", cure[1])
	}
	if got := h1.ask(check); got != "" {
		t.Errorf("after the cures the check says:\n%s", got)
	}
	before = others()
	services, slices := l.hello(a, c)
	l.put(services, slices)
	for i, ip := range services[0].Spec.ClusterIPs {
		only(t, a.dial("tcp", on(b.addrs[i], 8080), 1), "b "+a.addrs[i])
		only(t, a.dial("tcp", on(c.addrs[i], 8080), 1), "c "+a.addrs[i])
		only(t, c.dial("tcp", on(a.addrs[i], 8080), 1), "a "+c.addrs[i])
		eventually(t, patience, func() string { return want(b.dial("tcp", on(ip, 80), enough), "a", "c") })
		eventually(t, patience, func() string { return want(outside.dial("tcp", on(h1.at(ip), 30080), enough), "a", "c") })
	}
	// Docker's own: a published port, and a container that goes out.
	only(t, outside.dial("tcp", on(h1.at(a.addrs[0]), 8888), 1), "container "+outside.addr.String())
	only(t, container.dial("tcp", on(outside.addr.String(), 9), 1), refused)

	h1.ask(request{Verb: "clean"})
	if got := others(); got != before {
		t.Errorf("what was there is changed by the end:\n%s\nbefore:\n%s", got, before)
	}
	only(t, outside.dial("tcp", on(h1.at(a.addrs[0]), 8888), 1), "container "+outside.addr.String())
}

// container is a process on the bridge docker0 with the address 172.17.0.2.
func (m *machine) container(t *testing.T) *pod {
	t.Helper()
	p := m.process("container")
	m.run("ip", "link", "add", "vethd", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(p.pid))
	m.run("ip", "link", "set", "vethd", "master", "docker0", "up")
	for _, args := range []string{"addr add 172.17.0.2/16 dev eth0", "link set eth0 up", "route add default via 172.17.0.1"} {
		p.run(append([]string{"ip"}, strings.Fields(args)...)...)
	}
	return p
}
