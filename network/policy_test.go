package network_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// policed is a lab whose daemons know of pods and namespaces.
type policed struct {
	*lab
	t    *testing.T
	objs request
}

// run starts a pod labelled app=NAME whose port 8080 is called "web". The API knows of
// it first, and of its address only afterwards.
func (l *policed) run(m *machine, namespace, name string) *pod {
	l.t.Helper()
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Labels: map[string]string{"app": name}}}
	o.Spec.NodeName = m.name
	o.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}
	l.objs.Pods = append(l.objs.Pods, o)
	l.publish()
	p := m.pod(name)
	with := o.DeepCopy()
	for _, addr := range p.addrs {
		with.Status.PodIPs = append(with.Status.PodIPs, corev1.PodIP{IP: addr})
	}
	l.objs.Pods[len(l.objs.Pods)-1] = with
	l.publish()
	return p
}

// policies makes these, in YAML, all that there are.
func (l *policed) policies(texts ...string) {
	l.t.Helper()
	l.objs.Policies = nil
	for _, text := range texts {
		p := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
			l.t.Fatalf("%v in %s", err, text)
		}
		l.objs.Policies = append(l.objs.Policies, p)
	}
	l.publish()
}

func (l *policed) publish() {
	l.t.Helper()
	r := l.objs
	r.Verb = "policies"
	for _, m := range l.hosts {
		if m.cmd != nil {
			m.ask(r)
		}
	}
}

const patience = 30 * time.Second // until rules are there, on a machine that does much else

// soon waits until the dial gets this answer.
func soon(t *testing.T, what string, dial func() map[string]int, want string) {
	t.Helper()
	eventually(t, patience, func() string {
		got := dial()
		if len(got) == 1 && got[want] > 0 {
			return ""
		}
		return what + ": got " + keys(got) + ", want " + want
	})
}

func keys(m map[string]int) (out string) {
	for k := range m {
		out += k + ";"
	}
	return out
}

const refused = "error: connection refused"

func policyOf(namespace, name, spec string) string {
	return "{metadata: {namespace: " + namespace + ", name: " + name + "}, spec: " + spec + "}"
}

func TestPolicies(t *testing.T) {
	everywhere(t, 3, func(t *testing.T, lab *lab) {
		l := &policed{lab: lab, t: t}
		for _, name := range []string{"shop", "desk"} {
			l.objs.Namespaces = append(l.objs.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}})
		}
		h1, h2 := l.hosts[0], l.hosts[1]
		h1.up()
		h2.up()
		l.peers()
		h1.serves("machine")
		l.hosts[2].serves("outside")
		server, near, far := l.run(h1, "shop", "server"), l.run(h1, "shop", "near"), l.run(h2, "shop", "far")
		other := l.run(h2, "desk", "other")
		for _, addr := range server.addrs {
			t.Run(addr, func(t *testing.T) { policies(t, l, addr, server, near, far, other) })
		}
	})
}

// policies looks at what policies let through to the server's address ip; everything else is of
// that address' family.
func policies(t *testing.T, l *policed, ip string, server, near, far, other *pod) {
	h1, outside := l.hosts[0], l.hosts[2]
	tcp, udp := func(from *pod, to string) func() map[string]int {
		return func() map[string]int { return from.dial("tcp", to, 1) }
	}, func(from *pod, to string) func() map[string]int {
		return func() map[string]int { return from.dial("udp", to, 1) }
	}
	of := byFamily(ip)
	at, serviceIP := on(ip, 8080), of(clusterIP, clusterIP6)
	everyone := map[string]*pod{"near": near, "far": far, "other": other}
	expect := func(t *testing.T, allowed ...string) {
		t.Helper()
		for name, from := range everyone {
			want := refused
			for _, a := range allowed {
				if a == name {
					want = "server " + from.at(ip)
				}
			}
			soon(t, "TCP from "+name, tcp(from, at), want)
			if want == refused {
				want = of("error: no route to host", "error: permission denied") // ICMP says so
				eventually(t, patience, func() string {
					if got := from.dial("udp", at, 1); len(got) != 1 || got[want]+got["error: timeout"] != 1 {
						return fmt.Sprintf("UDP from %s: %v", name, got)
					}
					return ""
				})
			}
		}
		// Probes: the machine itself always reaches its pods, and a pod itself.
		only(t, h1.dial("tcp", at, 1), "server "+h1.own(ip))
		only(t, server.dial("tcp", at, 1), "server "+ip)
	}
	expect(t, "near", "far", "other")

	denyAll := policyOf("shop", "deny", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}")
	t.Run("default deny", func(t *testing.T) {
		l.policies(denyAll)
		expect(t)
		only(t, server.dial("tcp", on(far.at(ip), 8080), 1), "far "+server.at(ip))
		only(t, near.dial("tcp", on(far.at(ip), 8080), 1), "far "+near.at(ip))
	})
	t.Run("pod selector", func(t *testing.T) {
		l.policies(denyAll, policyOf("shop", "near", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]}"))
		expect(t, "near")
	})
	t.Run("namespace selector", func(t *testing.T) {
		l.policies(policyOf("shop", "desk", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: desk}}}]}]}"))
		expect(t, "other")
		soon(t, "another selected pod", tcp(near, on(far.at(ip), 8080)), refused)
	})
	t.Run("both selectors", func(t *testing.T) {
		l.policies(policyOf("shop", "both", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [far, other]}]}}]}]}"))
		expect(t, "far", "other")
	})
	t.Run("address blocks", func(t *testing.T) {
		l.policies(policyOf("shop", "block", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '"+of("10.42.0.0/16', except: [10.42.2.0/24, 10.42.2.0/25]", "fd42::/56', except: ['fd42:0:0:2::/64', 'fd42:0:0:2::/65']")+"}}]}]}"))
		expect(t, "near")
		l.policies(policyOf("shop", "block", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '"+of("0.0.0.0/0", "::/0")+"', except: ['"+alone(far.at(ip))+"']}}]}]}"))
		expect(t, "near", "other")
	})
	t.Run("ports", func(t *testing.T) {
		rule := func(port string) string {
			return policyOf("shop", "ports", "{podSelector: {matchLabels: {app: server}}, ingress: [{ports: ["+port+"]}]}")
		}
		for _, c := range []struct {
			port     string
			tcp, udp bool
		}{
			{"{port: 8080}", true, false},
			{"{port: 8081}", false, false},
			{"{protocol: UDP, port: 8080}", false, true},
			{"{protocol: UDP}", false, true},
			{"{port: 8000, endPort: 8100}", true, false},
			{"{port: 8000, endPort: 8079}", false, false},
			{"{port: 8000, endPort: 8079}, {port: 8050, endPort: 8090}, {port: 8091}", true, false},
			{"{port: web}", true, false},
			{"{port: nothing}", false, false},
		} {
			l.policies(rule(c.port))
			for name, from := range everyone {
				want := map[bool]string{true: "server " + from.at(ip), false: refused}
				soon(t, c.port+" from "+name, tcp(from, at), want[c.tcp])
				eventually(t, patience, func() string {
					if got := from.dial("udp", at, 1); (got["server "+from.at(ip)] == 1) != c.udp {
						return fmt.Sprintf("%s by UDP from %s: %v", c.port, name, got)
					}
					return ""
				})
			}
		}
	})
	noEgress := policyOf("shop", "out", "{podSelector: {matchLabels: {app: near}}, policyTypes: [Egress]}")
	t.Run("egress", func(t *testing.T) {
		l.policies()
		toOutside, toMachine := on(outside.at(ip), 8080), on(h1.at(ip), 8080)
		soon(t, "before", tcp(near, at), "server "+near.at(ip))
		only(t, near.dial("tcp", on(other.at(ip), 8080), 1), "other "+near.at(ip))
		only(t, near.dial("tcp", toOutside, 1), "outside "+h1.at(ip))
		only(t, near.dial("tcp", toMachine, 1), "machine "+near.at(ip))
		l.policies(noEgress)
		soon(t, "to a pod of the same peer", tcp(near, at), refused)
		only(t, near.dial("tcp", on(other.at(ip), 8080), 1), refused)
		only(t, near.dial("tcp", toOutside, 1), refused)
		only(t, near.dial("tcp", toMachine, 1), refused)
		only(t, server.dial("tcp", on(near.at(ip), 8080), 1), "near "+server.at(ip))
		l.policies(policyOf("shop", "out", "{podSelector: {matchLabels: {app: near}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {name: desk}}}], ports: [{port: web}]}, {to: [{ipBlock: {cidr: '"+alone(ip)+"'}}]}]}"))
		soon(t, "to the other namespace", tcp(near, on(other.at(ip), 8080)), "other "+near.at(ip))
		only(t, near.dial("tcp", on(other.at(ip), 8081), 1), refused)
		only(t, near.dial("tcp", on(far.at(ip), 8080), 1), refused)
		only(t, near.dial("tcp", at, 1), "server "+near.at(ip))
	})
	t.Run("through a Service", func(t *testing.T) {
		services, slices := l.hello(server)
		l.put(services, slices)
		l.policies()
		soon(t, "before", tcp(far, on(serviceIP, 80)), "server "+far.at(ip))
		l.policies(denyAll)
		soon(t, "denied", tcp(far, on(serviceIP, 80)), refused)
		soon(t, "to itself", tcp(server, on(serviceIP, 80)), "server "+h1.own(ip))
		l.policies(denyAll, policyOf("shop", "far", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: far}}}]}]}"))
		soon(t, "allowed", tcp(far, on(serviceIP, 80)), "server "+far.at(ip))
		soon(t, "by UDP", udp(far, on(serviceIP, 53)), "server "+far.at(ip))
	})
	t.Run("established connections", func(t *testing.T) {
		l.policies()
		for name, from := range everyone {
			soon(t, "before", tcp(from, at), "server "+from.at(ip))
			hold := from.hold(at)
			if got := hold("still"); got != "still" {
				t.Fatalf("%s: %s", name, got)
			}
			l.policies(denyAll)
			eventually(t, patience, func() string {
				if got := hold("still"); got == "still" {
					return name + " still talks"
				}
				return ""
			})
			l.policies()
			soon(t, "after that", tcp(from, at), "server "+from.at(ip))
			next := from.stream(at)
			if got := next(); got != "tick" {
				t.Fatalf("%s: %s", name, got)
			}
			l.policies(denyAll)
			eventually(t, patience, func() string {
				if next() == "tick" {
					return name + " is still talked to"
				}
				return ""
			})
			l.policies()
			soon(t, "afterwards", tcp(from, at), "server "+from.at(ip))
		}
		// A tracked flow of UDP, whose client keeps its port, ends as well.
		flow := func(from *pod) func() map[string]int {
			return func() map[string]int { return from.dial("udp", at, 1, "NETT_FROM="+on(from.at(ip), 5555)) }
		}
		for name, from := range everyone {
			soon(t, "UDP before", flow(from), "server "+from.at(ip))
			l.policies(denyAll)
			eventually(t, patience, func() string {
				if got := flow(from)(); got["server "+from.at(ip)] > 0 {
					return name + " is still answered by UDP"
				}
				return ""
			})
			l.policies()
			soon(t, "UDP afterwards", flow(from), "server "+from.at(ip))
		}
		// Nor does an answer that comes after its flow was ended open the way again.
		late := func(say string) map[string]int {
			return near.dial("udp", at, 1, "NETT_FROM="+on(near.at(ip), 5557), "NETT_SAY="+say)
		}
		only(t, late("later\\n"), "server "+near.at(ip))
		l.policies(denyAll)
		soon(t, "denied", tcp(near, at), refused)
		only(t, h1.dial("udp", at, 1), "server "+h1.own(ip))
		eventually(t, patience, func() string {
			if late("")["server "+near.at(ip)] > 0 {
				return "a late answer has opened the way again"
			}
			return ""
		})
		l.policies()
		soon(t, "TCP afterwards", tcp(near, at), "server "+near.at(ip))
		// A flow that goes on being allowed is not touched.
		hold := near.hold(at)
		l.policies(denyAll, policyOf("shop", "near", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]}"))
		soon(t, "denied", tcp(far, at), refused)
		if got := hold("still"); got != "still" {
			t.Errorf("an allowed connection was cut: %s", got)
		}
	})
	t.Run("established connections out", func(t *testing.T) {
		for name, to := range map[string]struct{ at, answer string }{
			"a pod of another peer":                {on(far.at(ip), 8080), "far " + near.at(ip)},
			"its machine":                          {on(h1.own(ip), 8080), "machine " + near.at(ip)},
			"outside, under the machine's address": {on(outside.at(ip), 8080), "outside " + h1.at(ip)},
		} {
			l.policies()
			soon(t, name, tcp(near, to.at), to.answer)
			hold, next := near.hold(to.at), near.stream(to.at)
			if got, heard := hold("still"), next(); got != "still" || heard != "tick" {
				t.Fatalf("%s: %s, %s", name, got, heard)
			}
			flow := func() map[string]int { return near.dial("udp", to.at, 1, "NETT_FROM="+on(near.at(ip), 5556)) }
			soon(t, "UDP to "+name, flow, to.answer)
			l.policies(noEgress)
			eventually(t, patience, func() string {
				if hold("still") == "still" {
					return name + " is still talked to"
				}
				return ""
			})
			eventually(t, patience, func() string {
				if next() == "tick" {
					return name + " still talks"
				}
				return ""
			})
			eventually(t, patience, func() string {
				if flow()[to.answer] > 0 {
					return name + " still answers by UDP"
				}
				return ""
			})
			// What is let through again is carried again, by the same ports.
			l.policies()
			soon(t, "UDP again to "+name, flow, to.answer)
		}
		// A flow that goes on being allowed is not touched.
		soon(t, "afterwards", tcp(near, on(outside.at(ip), 8080)), "outside "+h1.at(ip))
		hold := near.hold(on(outside.at(ip), 8080))
		l.policies(noEgress, policyOf("shop", "outside", "{podSelector: {matchLabels: {app: near}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: '"+alone(outside.at(ip))+"'}}]}]}"))
		soon(t, "not allowed", tcp(near, at), refused)
		if got := hold("still"); got != "still" {
			t.Errorf("an allowed connection was cut: %s", got)
		}
	})
	t.Run("a new pod is never open", func(t *testing.T) {
		l.policies(policyOf("shop", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
		soon(t, "the policy", tcp(near, at), refused)
		// The first look comes right after its interface is there.
		fresh := l.run(h1, "shop", of("fresh4", "fresh6"))
		only(t, far.dial("tcp", on(fresh.at(ip), 8080), 1), refused)
		only(t, fresh.dial("tcp", on(other.at(ip), 8080), 1), refused)
	})
	t.Run("nothing stays", func(t *testing.T) {
		l.policies()
		eventually(t, patience, func() string {
			for _, m := range l.hosts[:2] {
				for _, f := range m.ranges {
					if rules := m.run("nft", "list", "table", string(f.Table()), "rookery"); containsAny(rules, "chain policy-", "set policy-", "map policy-") {
						return rules
					}
				}
			}
			return ""
		})
	})
}

// Policies hold for both addresses of a pod, address blocks each for those of their family,
// and what is refused is noted.
func TestPoliciesOfBothFamilies(t *testing.T) {
	l := &policed{lab: newLabOf(t, 2, "vxlan", "46"), t: t}
	h1, h2 := l.hosts[0], l.hosts[1]
	l.objs.Namespaces = append(l.objs.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"name": "shop"}}})
	h1.up()
	h2.up()
	l.peers()
	server, near, far := l.run(h1, "shop", "server"), l.run(h1, "shop", "near"), l.run(h2, "shop", "far")
	dial := func(from *pod, addr string) func() map[string]int {
		return func() map[string]int { return from.dial("tcp", net.JoinHostPort(addr, "8080"), 1) }
	}
	for _, addr := range server.addrs {
		soon(t, "before", dial(far, addr), "server "+far.at(addr))
	}
	l.policies(policyOf("shop", "deny", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress]}"),
		policyOf("shop", "near", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}], ports: [{port: web}]}]}"))
	for i, addr := range server.addrs {
		soon(t, "not allowed", dial(far, addr), refused)
		soon(t, "allowed", dial(near, addr), "server "+near.at(addr))
		soon(t, "its egress", dial(server, far.addrs[i]), refused)
		family := []string{"ip", "ip6"}[i]
		for set, want := range map[string]string{"refused-ingress": far.addrs[i] + " . " + addr, "refused-egress": addr + " . " + far.addrs[i]} {
			if noted := h1.run("nft", "list", "set", family, "rookery", set); !strings.Contains(noted, want) {
				t.Errorf("%s has not %s: %s", set, want, noted)
			}
		}
	}
	l.policies(policyOf("shop", "block", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 'fd42:0:0:2::/64'}}]}]}"))
	soon(t, "a block of IPv6, by IPv4", dial(far, server.addrs[0]), refused)
	soon(t, "a block of IPv6", dial(far, server.addrs[1]), "server "+far.addrs[1])
	soon(t, "who is not in the block", dial(near, server.addrs[1]), refused)

	l.policies(policyOf("shop", "deny", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}"))
	services, slices := l.hello(near)
	l.put(services, slices)
	for _, damage := range []string{
		"flush ruleset",
		"flush table ip rookery; flush table ip6 rookery",
		"flush chain ip rookery services; flush chain ip6 rookery services; flush chain ip rookery policy-ingress-forward; flush chain ip6 rookery policy-ingress-forward",
		fmt.Sprintf("delete element ip rookery service-ips { %s . tcp . 80 }; delete element ip6 rookery service-ips { %s . tcp . 80 }", clusterIP, clusterIP6) +
			fmt.Sprintf("; delete element ip rookery policy-ingress { %s }; delete element ip6 rookery policy-ingress { %s }", server.addrs[0], server.addrs[1]),
	} {
		holds := func(when string) {
			t.Helper()
			for i, ip := range services[0].Spec.ClusterIPs {
				soon(t, "the Service "+when, func() map[string]int { return h1.dial("tcp", on(ip, 80), 1, briefly) }, "near "+h1.own(ip))
				soon(t, "the policy "+when, dial(far, server.addrs[i]), refused)
			}
		}
		holds("before " + damage)
		h1.run("nft", damage)
		begin := time.Now()
		holds("after " + damage)
		t.Logf("%s undone and seen after %s", damage, time.Since(begin))
	}
}

func containsAny(s string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}
