package network_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const clusterIP, clusterIP6 = "10.43.0.80", "fd43::80"

// hello is a Service on 80 (TCP, node port 30080) and 53 (UDP), with these pods ready.
func hello(pods ...*pod) ([]*corev1.Service, []*discoveryv1.EndpointSlice) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: "hello"}}
	svc.Spec = corev1.ServiceSpec{ClusterIP: clusterIP, Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{
		{Name: "http", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP},
		{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
	}}
	slices := []*discoveryv1.EndpointSlice{sliceOf(discoveryv1.AddressTypeIPv4, pods)}
	if len(pods) > 0 && len(pods[0].addrs) > 1 {
		svc.Spec.ClusterIPs = []string{clusterIP, clusterIP6}
		slices = append(slices, sliceOf(discoveryv1.AddressTypeIPv6, pods))
	}
	return []*corev1.Service{svc}, slices
}

// sliceOf has the addresses of the pods that are of the family.
func sliceOf(family discoveryv1.AddressType, pods []*pod) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "test", Name: "hello-" + strings.ToLower(string(family)), Labels: map[string]string{discoveryv1.LabelServiceName: "hello"}},
		AddressType: family,
	}
	for _, p := range []struct {
		name  string
		proto corev1.Protocol
	}{{"http", corev1.ProtocolTCP}, {"dns", corev1.ProtocolUDP}} {
		port := int32(8080)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.proto, Port: &port})
	}
	for _, p := range pods {
		yes := true
		for _, addr := range p.addrs {
			if strings.Contains(addr, ":") == (family == discoveryv1.AddressTypeIPv6) {
				slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
					Addresses: []string{addr}, NodeName: &p.m.name, Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
				})
			}
		}
	}
	return slice
}

func TestServiceAcrossPeers(t *testing.T) {
	l := newLab(t, 3, "wireguard")
	h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
	h1.up()
	h2.up()
	l.peers()
	a, b, c, client := h1.pod("a"), h1.pod("b"), h2.pod("c"), h1.pod("client")
	services, slices := hello(a, b, c)
	l.put(services, slices)
	eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "a", "b", "c") })
	eventually(t, patience, func() string { return want(h2.dial("tcp4", clusterIP+":80", enough), "a", "b", "c") })

	even := func(name string, got map[string]int, from string) {
		t.Helper()
		// 300 tries over three: mean 100, deviation 8; 60 off are more than seven deviations.
		for _, pod := range []string{"a", "b", "c"} {
			if n := got[pod+" "+from]; n < 40 || n > 160 {
				t.Errorf("%s: %v is not even, or not seen as from %s", name, got, from)
				return
			}
		}
	}
	even("from a pod", client.dial("tcp4", clusterIP+":80", 300), client.addr)
	even("from the machine", h1.dial("tcp4", clusterIP+":80", 300), "10.42.1.1")
	if got := want(h1.dial("tcp4", h1.addr.String()+":30080", enough), "a", "b", "c"); got != "" {
		t.Errorf("NodePort from the machine itself: %s", got)
	}
	if got := want(outside.dial("tcp4", h1.addr.String()+":30080", enough), "a", "b", "c"); got != "" {
		t.Errorf("NodePort from outside: %s", got)
	}
	if got := want(client.dial("tcp4", h2.addr.String()+":30080", enough), "a", "b", "c"); got != "" {
		t.Errorf("another peer's NodePort from a pod: %s", got)
	}
	if got := want(client.dial("udp4", clusterIP+":53", enough), "a", "b", "c"); got != "" {
		t.Errorf("UDP: %s", got)
	}
	only(t, client.dial("tcp4", clusterIP+":81", 1), "error: connection refused")
	only(t, h1.dial("tcp4", clusterIP+":81", 1), "error: connection refused")
	only(t, client.dial("tcp4", "10.43.7.7:80", 1), "error: connection refused")
	only(t, h1.dial("tcp4", "127.0.0.1:30080", 1), "error: connection refused")

	t.Run("hairpin", func(t *testing.T) {
		l.put(hello(a))
		eventually(t, patience, func() string { return want(a.dial("tcp4", clusterIP+":80", 3), "a") })
		only(t, a.dial("tcp4", clusterIP+":80", 3), "a 10.42.1.1")
	})
	t.Run("local policy", func(t *testing.T) {
		services, slices := hello(a, b, c)
		services[0].Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		l.put(services, slices)
		eventually(t, patience, func() string { return want(outside.dial("tcp4", h2.addr.String()+":30080", enough), "c") })
		only(t, outside.dial("tcp4", h2.addr.String()+":30080", 3), "c "+outside.addr.String())
		if got := want(client.dial("tcp4", h1.addr.String()+":30080", enough), "a", "b", "c"); got != "" {
			t.Errorf("from inside: %s", got)
		}
	})
	t.Run("affinity", func(t *testing.T) {
		services, slices := hello(a, b, c)
		services[0].Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		l.put(services, slices)
		eventually(t, patience, func() string {
			if got := client.dial("tcp4", clusterIP+":80", 20); len(got) != 1 {
				return fmt.Sprint(got)
			}
			return ""
		})
	})
	t.Run("weights", func(t *testing.T) {
		services, slices := hello(a, b, c)
		services[0].Annotations = map[string]string{"weights": a.addr + "=17 " + b.addr + "=0 " + c.addr + "=83"}
		l.put(services, slices)
		eventually(t, patience, func() string {
			return want(h2.dial("tcp4", clusterIP+":80", enough), "a", "c")
		})
		soon := func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "a", "c") }
		eventually(t, patience, soon)
		got := client.dial("tcp4", clusterIP+":80", 400)
		inA, inC := got["a "+client.addr], got["c "+client.addr]
		if lost := 400 - inA - inC; lost > 4 || inA > 68 || inA < 68-lost || inC > 332 || inC < 332-lost {
			t.Errorf("of 400 connections a got %d and c %d, want 68 and 332", inA, inC)
		}
		// The share of a group without endpoints goes to the others.
		_, slices = hello(a, b)
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "a") })
	})
	t.Run("near", func(t *testing.T) {
		services, slices := hello(a, c)
		for i, zone := range []string{"zone-h1", "zone-h2"} {
			slices[0].Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "a") })
		eventually(t, patience, func() string { return want(h2.dial("tcp4", clusterIP+":80", enough), "c") })
		// None is near any more: all of them.
		slices[0].Endpoints = slices[0].Endpoints[1:]
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "c") })
	})
	t.Run("other addresses", func(t *testing.T) {
		services, slices := hello(a)
		services[0].Spec.ExternalIPs = []string{"192.0.2.7"}
		services[0].Spec.LoadBalancerSourceRanges = []string{outside.addr.String() + "/32"}
		services[0].Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.8"}}
		for _, ip := range []string{"192.0.2.7", "192.0.2.8"} {
			for _, from := range []*machine{outside, h2} {
				from.run("ip", "route", "replace", ip, "via", h1.addr.String())
			}
		}
		l.put(services, slices)
		at := func(from *machine, ip string) func() string {
			return func() string { return want(from.dial("tcp4", ip+":80", 1), "a") }
		}
		eventually(t, patience, at(outside, "192.0.2.7"))
		eventually(t, patience, at(outside, "192.0.2.8"))
		eventually(t, patience, at(h2, "192.0.2.7"))
		services[0].Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", "203.0.113.5/32"}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(outside.dial("tcp4", "192.0.2.8:80", 1), "error:") })
		only(t, outside.dial("tcp4", "192.0.2.7:80", 1), "a "+outside.addr.String())
	})
	t.Run("health check port", func(t *testing.T) {
		services, slices := hello(c)
		services[0].Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		services[0].Spec.HealthCheckNodePort = 32123
		l.put(services, slices)
		ask := func(m *machine) string {
			return fmt.Sprint(outside.dial("tcp4", m.addr.String()+":32123", 1, "NETT_SAY=GET / HTTP/1.0\\r\\n\\r\\n"))
		}
		eventually(t, patience, func() string { return part(ask(h1), "503 Service Unavailable") })
		eventually(t, patience, func() string { return part(ask(h2), "200 OK") })
		services[0].Spec.HealthCheckNodePort = 0
		l.put(services, slices)
		eventually(t, patience, func() string { return part(ask(h2), refused) })
	})
	t.Run("no endpoints", func(t *testing.T) {
		l.put(hello())
		eventually(t, patience, func() string {
			for _, got := range []map[string]int{client.dial("tcp4", clusterIP+":80", 1), h1.dial("tcp4", clusterIP+":80", 1), outside.dial("tcp4", h1.addr.String()+":30080", 1)} {
				if got["error: connection refused"] != 1 {
					return fmt.Sprint(got)
				}
			}
			return ""
		})
	})
}

func TestDeadPeerLeavesAtOnce(t *testing.T) {
	l := newLab(t, 2, "vxlan")
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	l.peers()
	a, c, client := h1.pod("a"), h2.pod("c"), h1.pod("client")
	l.put(hello(c))
	eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", 2), "c") })
	stuck := client.hold(clusterIP + ":80")
	l.put(hello(a, c))
	eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "a", "c") })
	if got := stuck("still"); got != "still" {
		t.Fatalf("a connection was cut by a new endpoint: %s", got)
	}
	// An endpoint that terminates keeps its connections.
	l.put(hello(a))
	eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "a") })
	if got := stuck("still"); got != "still" {
		t.Fatalf("a connection to a terminating endpoint was cut: %s", got)
	}
	l.put(hello(a, c))
	eventually(t, patience, func() string { return want(client.dial("tcp4", clusterIP+":80", enough), "a", "c") })

	l.ip("-n", l.name+"-lan", "link", "set", "l2", "down")
	begin := time.Now()
	h1.ask(request{Verb: "dead", Dead: []string{"h2"}})
	// Read once a millisecond what the kernel has.
	eventually(t, patience, func() string {
		if rules := h1.run("nft", "list", "chain", "ip", "rookery", "cluster-test/hello/tcp/http"); strings.Contains(rules, c.addr) {
			return rules
		}
		return ""
	})
	t.Logf("out of the rules after %s", time.Since(begin))
	only(t, client.dial("tcp4", clusterIP+":80", 20), "a "+client.addr)
	begin = time.Now()
	if got := stuck("anyone?"); !strings.Contains(got, "reset") {
		t.Errorf("the connection to the dead peer: %q, want a reset", got)
	}
	t.Logf("its connection was reset after %s", time.Since(begin))
}

// part says what is wrong if got does not have want in it.
func part(got, want string) string {
	if strings.Contains(got, want) {
		return ""
	}
	return fmt.Sprintf("%s, want %s", got, want)
}

// hold keeps a connection open; the function sends a line through it and returns what came back.
func (p *pod) hold(target string) func(line string) string {
	p.m.lab.t.Helper()
	in, read := p.connect(target, "1")
	return func(line string) string {
		if _, err := fmt.Fprintln(in, line); err != nil {
			p.m.lab.t.Fatal(err)
		}
		return read()
	}
}

// stream keeps a connection open through which only the other end talks; the function
// returns the next line.
func (p *pod) stream(target string) func() string {
	p.m.lab.t.Helper()
	_, read := p.connect(target, "stream")
	return read
}

func (p *pod) connect(target, hold string) (in io.Writer, read func() string) {
	t := p.m.lab.t
	t.Helper()
	cmd := exec.Command("nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", p.pid), "--", os.Args[0])
	cmd.Env = append(os.Environ(), "NETT_ROLE=dial", "NETT_NETWORK=tcp", "NETT_TARGET="+target, "NETT_COUNT=1", "NETT_HOLD="+hold)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Log(err)
		}
		_ = cmd.Wait()
	})
	out := bufio.NewReader(stdout)
	read = func() string {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(line)
	}
	t.Logf("held by %s", read())
	return stdin, read
}
