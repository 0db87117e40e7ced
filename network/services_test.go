package network_test

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
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

// hello is a Service of each of the cluster's IP families on 80 (TCP, node port 30080) and
// 53 (UDP, 30053), with these pods ready.
func (l *lab) hello(pods ...*pod) ([]*corev1.Service, []*discoveryv1.EndpointSlice) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: "hello"}}
	svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{
		{Name: "http", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP},
		{Name: "dns", Port: 53, NodePort: 30053, Protocol: corev1.ProtocolUDP},
	}}
	var slices []*discoveryv1.EndpointSlice
	for _, f := range l.hosts[0].ranges {
		ip, family := clusterIP, discoveryv1.AddressTypeIPv4
		if f.PodCIDR.Addr().Is6() {
			ip, family = clusterIP6, discoveryv1.AddressTypeIPv6
		}
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, ip)
		slices = append(slices, sliceOf(family, pods))
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
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

// everywhere runs a test over each backend in clusters of IPv4 and of both IP families, and
// in one of IPv6 alone.
func everywhere(t *testing.T, hosts int, test func(t *testing.T, l *lab)) {
	t.Helper()
	for _, c := range []struct{ backend, families string }{
		{"wireguard", "4"}, {"wireguard", "64"}, {"vxlan", "4"}, {"vxlan", "46"}, {"vxlan", "6"}, {"direct", "4"}, {"direct", "46"},
	} {
		t.Run(c.backend+" "+c.families, func(t *testing.T) { test(t, newLabOf(t, hosts, c.backend, c.families)) })
	}
}

func TestServiceAcrossPeers(t *testing.T) {
	everywhere(t, 3, func(t *testing.T, l *lab) {
		l.hosts[0].up()
		l.hosts[1].up()
		l.peers()
		a, b, c, client := l.hosts[0].pod("a"), l.hosts[0].pod("b"), l.hosts[1].pod("c"), l.hosts[0].pod("client")
		l.hosts[1].serves("machine")
		services, _ := l.hello()
		for _, ip := range services[0].Spec.ClusterIPs {
			t.Run(ip, func(t *testing.T) { serviceAcrossPeers(t, l, ip, a, b, c, client) })
		}
	})
}

// serviceAcrossPeers looks at the Service under one of its addresses; everything else is of
// that address' family.
func serviceAcrossPeers(t *testing.T, l *lab, ip string, a, b, c, client *pod) {
	h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
	of := byFamily(ip)
	web, node1, node2 := on(ip, 80), on(h1.at(ip), 30080), on(h2.at(ip), 30080)
	l.put(l.hello(a, b, c))
	eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "a", "b", "c") })
	eventually(t, patience, func() string { return want(h2.dial("tcp", web, enough), "a", "b", "c") })

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
	even("from a pod", client.dial("tcp", web, 300), client.at(ip))
	even("from the machine", h1.dial("tcp", web, 300), h1.own(ip))
	if got := want(h1.dial("tcp", node1, enough), "a", "b", "c"); got != "" {
		t.Errorf("NodePort from the machine itself: %s", got)
	}
	if got := want(outside.dial("tcp", node1, enough), "a", "b", "c"); got != "" {
		t.Errorf("NodePort from outside: %s", got)
	}
	if got := want(client.dial("tcp", node2, enough), "a", "b", "c"); got != "" {
		t.Errorf("another peer's NodePort from a pod: %s", got)
	}
	if got := want(client.dial("udp", on(ip, 53), enough), "a", "b", "c"); got != "" {
		t.Errorf("UDP: %s", got)
	}
	only(t, client.dial("tcp", on(ip, 81), 1), refused)
	only(t, h1.dial("tcp", on(ip, 81), 1), refused)
	only(t, client.dial("tcp", on(of("10.43.7.7", "fd43::77"), 80), 1), refused)
	only(t, h1.dial("tcp", on(of("127.0.0.1", "::1"), 30080), 1), refused)

	t.Run("hairpin", func(t *testing.T) {
		l.put(l.hello(a))
		eventually(t, patience, func() string { return want(a.dial("tcp", web, enough), "a") })
		only(t, a.dial("tcp", web, 3), "a "+h1.own(ip))
		only(t, a.dial("udp", on(ip, 53), 1), "a "+h1.own(ip))
	})
	t.Run("local policies", func(t *testing.T) {
		services, slices := l.hello(a, b, c)
		services[0].Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		l.put(services, slices)
		eventually(t, patience, func() string { return want(outside.dial("tcp", node2, enough), "c") })
		only(t, outside.dial("tcp", node2, 3), "c "+outside.at(ip))
		eventually(t, patience, func() string { return want(client.dial("tcp", node1, enough), "a", "b", "c") })
		local := corev1.ServiceInternalTrafficPolicyLocal
		services, slices = l.hello(b, c)
		services[0].Spec.InternalTrafficPolicy = &local
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "b") })
		eventually(t, patience, func() string { return want(h2.dial("tcp", web, enough), "c") })
		// Who has none of its own reaches none.
		services, slices = l.hello(c)
		services[0].Spec.InternalTrafficPolicy = &local
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp", web, 1, briefly), "error:") })
	})
	t.Run("affinity", func(t *testing.T) {
		services, slices := l.hello(a, b, c)
		services[0].Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		l.put(services, slices)
		var kept string // what answers the client
		one := func(way func() map[string]int) func() string {
			return func() string {
				got := way()
				if len(got) != 1 {
					return fmt.Sprint(got)
				}
				for answer := range got {
					kept = answer
				}
				return ""
			}
		}
		eventually(t, patience, one(func() map[string]int { return outside.dial("tcp", node1, enough) }))
		eventually(t, patience, one(func() map[string]int { return client.dial("udp", on(ip, 53), enough) }))
		eventually(t, patience, one(func() map[string]int { return client.dial("tcp", web, enough) }))
		// It is kept when others come and go, and ends with its endpoint.
		all, rest := map[string]*pod{"a": a, "b": b, "c": c}, []*pod{}
		for name, p := range all {
			if !strings.HasPrefix(kept, name+" ") {
				rest = append(rest, p)
			}
		}
		lost := kept
		affine := func(timeout int32, pods ...*pod) {
			services, slices := l.hello(pods...)
			services[0].Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			services[0].Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
			l.put(services, slices)
		}
		affine(10800, rest...)
		eventually(t, patience, func() string {
			if got := one(func() map[string]int { return client.dial("tcp", web, enough) })(); got != "" {
				return got
			}
			if kept == lost || strings.HasPrefix(kept, "error") {
				return "it is answered by " + kept
			}
			return ""
		})
		// After its time somebody else may answer: of three, one of 20 tries at the latest.
		affine(1, a, b, c)
		answers := map[string]int{}
		for i := 0; i < 20 && len(answers) < 2; i++ {
			time.Sleep(1500 * time.Millisecond)
			for answer, n := range client.dial("tcp", web, 1) {
				answers[answer] += n
			}
		}
		if len(answers) < 2 {
			t.Errorf("after a second without a connection the client was still sent to the same: %v", answers)
		}
	})
	t.Run("weights", func(t *testing.T) {
		services, slices := l.hello(a, b, c)
		services[0].Annotations = map[string]string{"weights": a.at(ip) + "=17 " + b.at(ip) + "=0 " + c.at(ip) + "=83"}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(h2.dial("tcp", web, enough), "a", "c") })
		eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "a", "c") })
		got := client.dial("tcp", web, 400)
		inA, inC := got["a "+client.at(ip)], got["c "+client.at(ip)]
		if lost := 400 - inA - inC; lost > 4 || inA > 68 || inA < 68-lost || inC > 332 || inC < 332-lost {
			t.Errorf("of 400 connections a got %d and c %d, want 68 and 332", inA, inC)
		}
		// The share of a group without endpoints goes to the others.
		_, slices = l.hello(a, b)
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "a") })
	})
	t.Run("near", func(t *testing.T) {
		services, slices := l.hello(a, c)
		for _, s := range slices {
			for i, zone := range []string{"zone-h1", "zone-h2"} {
				s.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
			}
		}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "a") })
		eventually(t, patience, func() string { return want(h2.dial("tcp", web, enough), "c") })
		// None is near any more: all of them.
		for _, s := range slices {
			s.Endpoints = s.Endpoints[1:]
		}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "c") })
	})
	t.Run("terminating endpoints", func(t *testing.T) {
		// They get nothing while others are ready, and everything when only they can serve.
		no, yes := false, true
		ends := discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
		failed := discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &no}
		services, slices := l.hello(a, b, c)
		for _, s := range slices {
			s.Endpoints[0].Conditions = ends
		}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "b", "c") })
		eventually(t, patience, func() string { return want(outside.dial("tcp", node1, enough), "b", "c") })
		services, slices = l.hello(a, b, c)
		for _, s := range slices {
			s.Endpoints[0].Conditions, s.Endpoints[1].Conditions, s.Endpoints[2].Conditions = ends, failed, ends
		}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(client.dial("tcp", web, enough), "a", "c") })
		eventually(t, patience, func() string { return want(outside.dial("tcp", node2, enough), "a", "c") })
	})
	t.Run("UDP goes on", func(t *testing.T) {
		// A client that keeps its port, and with it its tracked flow, is sent to the endpoint that comes next.
		l.put(l.hello(a, c))
		from := func(addr string) string { return "NETT_FROM=" + on(addr, 5555) }
		ways := map[string]func() map[string]int{
			"from a pod":         func() map[string]int { return client.dial("udp", on(ip, 53), 1, from(client.at(ip))) },
			"from the machine":   func() map[string]int { return h1.dial("udp", on(ip, 53), 1, from(h1.own(ip))) },
			"to the NodePort":    func() map[string]int { return outside.dial("udp", on(h1.at(ip), 30053), 1, from(outside.at(ip))) },
			"from another peer":  func() map[string]int { return h2.dial("udp", on(ip, 53), 1, from(h2.own(ip))) },
			"from the pod there": func() map[string]int { return c.dial("udp", on(ip, 53), 1, from(c.at(ip))) },
		}
		for _, now := range []*pod{a, c, b} {
			l.put(l.hello(now))
			for name, way := range ways {
				eventually(t, patience, func() string {
					if got := want(way(), now.uid); got != "" {
						return name + ": " + got
					}
					return ""
				})
			}
		}
	})
	t.Run("other addresses", func(t *testing.T) {
		external, balancer := of("192.0.2.7", "2001:db8::7"), of("192.0.2.8", "2001:db8::8")
		services, slices := l.hello(a)
		services[0].Spec.ExternalIPs = []string{external}
		services[0].Spec.LoadBalancerSourceRanges = []string{alone(outside.at(ip))}
		services[0].Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: balancer}}
		for _, to := range []string{external, balancer} {
			for _, from := range []*machine{outside, h2} {
				from.run("ip", "route", "replace", to, "via", h1.at(ip))
			}
		}
		l.put(services, slices)
		at := func(from *machine, to string) func() string {
			return func() string { return want(from.dial("tcp", on(to, 80), 1), "a") }
		}
		eventually(t, patience, at(outside, external))
		eventually(t, patience, at(outside, balancer))
		eventually(t, patience, at(h2, external))
		eventually(t, patience, func() string { return want(client.dial("tcp", on(external, 80), 1), "a") })
		services[0].Spec.LoadBalancerSourceRanges = []string{of("203.0.113.0/24", "2001:db8:1::/48"), of("203.0.113.5/32", "2001:db8:1::5/128")}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(outside.dial("tcp", on(balancer, 80), 1, briefly), "error:") })
		only(t, outside.dial("tcp", on(external, 80), 1), "a "+outside.at(ip))
	})
	t.Run("an endpoint outside", func(t *testing.T) {
		services, slices := l.hello(a)
		for _, s := range slices {
			s.Endpoints[0].Addresses = []string{h2.at(s.Endpoints[0].Addresses[0])} // what the machine itself serves
		}
		l.put(services, slices)
		// The answer comes back the way that the question went.
		eventually(t, patience, func() string { return want(outside.dial("tcp", node1, 1), "machine") })
		only(t, outside.dial("tcp", node1, 1), "machine "+h1.at(ip))
		only(t, client.dial("tcp", web, 1), "machine "+h1.at(ip))
	})
	t.Run("health check port", func(t *testing.T) {
		services, slices := l.hello(c)
		services[0].Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		services[0].Spec.HealthCheckNodePort = 32123
		l.put(services, slices)
		ask := func(m *machine) string {
			return fmt.Sprint(outside.dial("tcp", on(m.at(ip), 32123), 1, "NETT_SAY=GET / HTTP/1.0\\r\\n\\r\\n"))
		}
		eventually(t, patience, func() string { return part(ask(h1), "503 Service Unavailable") })
		eventually(t, patience, func() string { return part(ask(h2), "200 OK") })
		services[0].Spec.HealthCheckNodePort = 0
		l.put(services, slices)
		eventually(t, patience, func() string { return part(ask(h2), refused) })
	})
	t.Run("no endpoints", func(t *testing.T) {
		services, slices := l.hello()
		external := of("192.0.2.7", "2001:db8::7")
		services[0].Spec.ExternalIPs = []string{external}
		h1.run("ip", "route", "replace", external, "via", outside.at(ip)) // as a default route would lead it out
		l.put(services, slices)
		eventually(t, patience, func() string {
			for _, got := range []map[string]int{
				client.dial("tcp", web, 1), h1.dial("tcp", web, 1), outside.dial("tcp", node1, 1),
				client.dial("tcp", on(external, 80), 1), h1.dial("tcp", on(external, 80), 1), outside.dial("tcp", on(external, 80), 1),
			} {
				if got[refused] != 1 {
					return fmt.Sprint(got)
				}
			}
			return ""
		})
		// What the machine itself serves on that port is not the Service.
		only(t, outside.dial("tcp", on(h2.at(ip), 8080), 1), "machine "+outside.at(ip))
		services[0].Spec.Ports[0].Port = 8080
		services[0].Spec.ExternalIPs = []string{h2.at(ip)}
		l.put(services, slices)
		eventually(t, patience, func() string { return want(outside.dial("tcp", on(h2.at(ip), 8080), 1), "error:") })
		only(t, outside.dial("tcp", on(h2.at(ip), 8080), 1), refused)
		services[0].Spec.ExternalIPs = nil
		l.put(services, slices)
		eventually(t, patience, func() string { return want(outside.dial("tcp", on(h2.at(ip), 8080), 1), "machine") })
	})
}

func TestDeadPeerLeavesAtOnce(t *testing.T) {
	everywhere(t, 2, deadPeerLeavesAtOnce)
}

func deadPeerLeavesAtOnce(t *testing.T, l *lab) {
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	l.peers()
	a, c, client := h1.pod("a"), h2.pod("c"), h1.pod("client")
	services, _ := l.hello()
	ips := services[0].Spec.ClusterIPs
	answer := func(pods ...string) {
		t.Helper()
		for _, ip := range ips {
			eventually(t, patience, func() string { return want(client.dial("tcp", on(ip, 80), enough), pods...) })
		}
	}
	l.put(l.hello(c))
	answer("c")
	var stuck []func(string) string
	for _, ip := range ips {
		stuck = append(stuck, client.hold(on(ip, 80)))
	}
	still := func(what string) {
		t.Helper()
		for i, held := range stuck {
			if got := held("still"); got != "still" {
				t.Fatalf("a connection to %s was cut by %s: %s", ips[i], what, got)
			}
		}
	}
	l.put(l.hello(a, c))
	answer("a", "c")
	still("a new endpoint")
	l.put(l.hello(a))
	answer("a")
	still("the end of its endpoint, which may still finish")
	l.put(l.hello(a, c))
	answer("a", "c")

	l.ip("-n", l.name+"-lan", "link", "set", "l2", "down")
	begin := time.Now()
	h1.ask(request{Verb: "dead", Dead: []string{"h2"}})
	for i, ip := range ips {
		// Read once a millisecond what the kernel has.
		eventually(t, patience, func() string {
			if rules := h1.run("nft", "list", "map", string(h1.ranges[i].Table()), "rookery", "service-ips-tcp-endpoints"); strings.Contains(rules, c.at(ip)) {
				return rules
			}
			return ""
		})
		t.Logf("out of the rules after %s", time.Since(begin))
		only(t, client.dial("tcp", on(ip, 80), enough), "a "+client.at(ip))
		if got := stuck[i]("anyone?"); !strings.Contains(got, "reset") {
			t.Errorf("the connection to the dead peer by %s: %q, want a reset", ip, got)
		}
	}
}

// briefly is for a dial whose packets are dropped: so long is long enough to see that.
const briefly = "NETT_WAIT=500ms"

// byFamily returns what chooses of two the one of the address' family.
func byFamily(addr string) func(v4, v6 string) string {
	return func(v4, v6 string) string {
		if strings.Contains(addr, ":") {
			return v6
		}
		return v4
	}
}

// alone is the address block with nothing but this address.
func alone(addr string) string {
	a := netip.MustParseAddr(addr)
	return netip.PrefixFrom(a, a.BitLen()).String()
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
