package network_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func port(ip string, proto corev1.Protocol, host int32) corev1.ContainerPort {
	return corev1.ContainerPort{HostIP: ip, Protocol: proto, HostPort: host, ContainerPort: 8080}
}

// A host port leads to its pod from wherever a client is, with the client's address
// where it can be, until the pod is gone.
func TestHostPorts(t *testing.T) {
	l := newLab(t, 2, "vxlan")
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	l.peers()
	a := h1.pod("a", port("", "TCP", 8080), port("", "UDP", 8080), port("127.0.0.1", "TCP", 8081), port("192.168.77.1", "TCP", 8082), port("", "UDP", 53))
	b, c := h1.pod("b"), h2.pod("c")
	for _, step := range []struct {
		name string
		got  map[string]int
		want string
	}{
		{"from the LAN", h2.dial("tcp4", "192.168.77.1:8080", 2, "NETT_FROM=192.168.77.2"), "a 192.168.77.2"},
		{"from the LAN by UDP", h2.dial("udp4", "192.168.77.1:8080", 1, "NETT_FROM=192.168.77.2"), "a 192.168.77.2"},
		{"from the machine", h1.dial("tcp4", "192.168.77.1:8080", 2), "a 192.168.77.1"},
		{"from the machine by UDP", h1.dial("udp4", "192.168.77.1:8080", 1), "a 192.168.77.1"},
		{"from the machine by its loopback address", h1.dial("tcp4", "127.0.0.1:8080", 2), "a 10.42.1.1"},
		{"from the machine by its loopback address and UDP", h1.dial("udp4", "127.0.0.1:8080", 1), "a 10.42.1.1"},
		{"from a neighbour", b.dial("tcp4", "192.168.77.1:8080", 2), "a " + b.addr},
		{"from the pod itself", a.dial("tcp4", "192.168.77.1:8080", 2), "a 10.42.1.1"},
		{"from another peer's pod", c.dial("tcp4", "192.168.77.1:8080", 2), "a 192.168.77.2"},
		{"one address, the loopback", h1.dial("tcp4", "127.0.0.1:8081", 1), "a 10.42.1.1"},
		{"one address, not the loopback", h1.dial("tcp4", "192.168.77.1:8081", 1), "error: connection refused"},
		{"not the loopback, from the LAN", h2.dial("tcp4", "192.168.77.1:8081", 1), "error: connection refused"},
		{"one address", h2.dial("tcp4", "192.168.77.1:8082", 1, "NETT_FROM=192.168.77.2"), "a 192.168.77.2"},
		{"one address, not another", h1.dial("tcp4", "10.42.1.1:8082", 1), "error: connection refused"},
		{"the pod's address is no less its own", c.dial("tcp4", a.addr+":8080", 1), "a " + c.addr},
	} {
		t.Run(step.name, func(t *testing.T) { only(t, step.got, step.want) })
	}
	// The DNS address is local to the peer, and port 53 of it is not the pod's.
	if got := h1.dial("udp4", "10.43.0.10:53", 1); got["a 192.168.77.1"]+got["a 10.42.1.1"]+got["a 10.43.0.10"] > 0 {
		t.Errorf("the cluster's DNS is answered by a pod: %v", got)
	}
	// A pod that sends to the loopback address by its interface does not get at what the machine
	// serves there; "connection refused" would be the machine's answer.
	in := fmt.Sprintf("--net=/proc/%d/ns/net", a.pid)
	run(t, "nsenter", in, "--", "ip", "addr", "flush", "dev", "lo")
	run(t, "nsenter", in, "--", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet")
	run(t, "nsenter", in, "--", "ip", "route", "add", "127.0.0.1/32", "via", "169.254.1.1", "dev", "eth0", "src", a.addr)
	only(t, a.dial("tcp4", "127.0.0.1:9", 1), "error: timeout")

	if _, err := h1.try(request{Verb: "attach", UID: "b", PID: b.pid, Ports: []corev1.ContainerPort{port("", "TCP", 8082)}}); err == nil || !strings.Contains(err.Error(), "hostPort 8082/TCP is already taken") {
		t.Errorf("a port that is taken: %v", err)
	}
	state := func() string { return h1.run("nft", "list", "table", "ip", "rookery") }
	before := state()
	h1.kill()
	only(t, h2.dial("tcp4", "192.168.77.1:8080", 1, "NETT_FROM=192.168.77.2"), "a 192.168.77.2")
	h1.up()
	if got := state(); got != before {
		t.Errorf("the start changed something:\n%s\nbefore:\n%s", got, before)
	}
	l.peers()

	// A client that goes on by UDP from the same port is sent to the pod that comes next.
	from := "NETT_FROM=192.168.77.2:5555"
	only(t, h2.dial("udp4", "192.168.77.1:8080", 1, from), "a 192.168.77.2")
	h1.ask(request{Verb: "detach", UID: "a"})
	only(t, h2.dial("tcp4", "192.168.77.1:8080", 1), "error: connection refused")
	h1.pod("d", port("0.0.0.0", "UDP", 8080))
	only(t, h2.dial("udp4", "192.168.77.1:8080", 1, from), "d 192.168.77.2")
	h1.ask(request{Verb: "detach", UID: "d"})
	// Nothing stays of it. The first time something else may see to that: the rules of Services,
	// which have just been written.
	gone := func() string {
		if rules := state(); strings.Contains(rules, "hostport") {
			return "left behind:\n" + rules
		}
		return ""
	}
	eventually(t, patience, gone)
	h1.pod("e", port("", "TCP", 8080))
	h1.ask(request{Verb: "detach", UID: "e"})
	eventually(t, patience, gone)
}
