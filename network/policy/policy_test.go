package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
	"sigs.k8s.io/yaml"
)

var (
	self  = Self{Node: "here", DNS: netip.MustParseAddr("10.43.0.10")}
	self6 = Self{Node: "here", DNS: netip.MustParseAddr("fd43::a")}
	other = strings.NewReplacer("0.0.0.0/0", "'::/0'", "10.42.0.0/16", "'fd42::/56'", "fd00::/8", "10.0.0.0/8")
)

// second is the IPv6 address that goes with an IPv4 one.
func second(v4 string) string {
	a := netip.MustParseAddr(v4).As4()
	switch {
	case v4 == self.DNS.String():
		return self6.DNS.String()
	case a[0] == 10:
		return fmt.Sprintf("fd42:0:0:%x::%x", a[2], a[3])
	}
	return fmt.Sprintf("fd77::%x:%x", a[0], a[3])
}

// world has, in namespace shop, pods a (here, 10.42.1.2, port web) and b (there, 10.42.2.2,
// port web), in desk pod c (there, 10.42.2.3), and h in the host's network of there.
func world(t *testing.T, policies ...string) objects {
	t.Helper()
	o := objects{local: map[string][]netip.Addr{"a": {netip.MustParseAddr("10.42.1.2"), netip.MustParseAddr("fd42:0:0:1::2")}}}
	for _, ns := range []string{"shop", "desk"} {
		o.namespaces = append(o.namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{"name": ns}}})
	}
	for _, p := range []struct {
		ns, name, node, addr string
		port                 int32
	}{{"shop", "a", "here", "", 8080}, {"shop", "b", "there", "10.42.2.2", 9090}, {"desk", "c", "there", "10.42.2.3", 0}, {"shop", "h", "there", "192.168.77.2", 0}} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.ns, Name: p.name, UID: types.UID(p.name), Labels: map[string]string{"app": p.name}}}
		pod.Spec.NodeName, pod.Spec.HostNetwork = p.node, p.name == "h"
		pod.Spec.Containers = []corev1.Container{{}}
		if p.port != 0 {
			pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: p.port}}
		}
		if p.addr != "" {
			pod.Status.PodIPs = []corev1.PodIP{{IP: p.addr}, {IP: second(p.addr)}}
		}
		o.pods = append(o.pods, pod)
	}
	for i, spec := range policies {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("p", i)}}
		if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
			t.Fatalf("%v in %s", err, spec)
		}
		o.policies = append(o.policies, p)
	}
	return o
}

// Each flow is "FROM>TO:PORT/PROTO"; all that are not listed as allowed are refused.
var flows = []string{
	"10.42.2.2>10.42.1.2:8080/tcp", "10.42.2.3>10.42.1.2:8080/tcp", "10.42.2.3>10.42.1.2:8080/udp", "10.42.2.3>10.42.1.2:99/tcp",
	"192.168.77.2>10.42.1.2:8080/tcp", "10.42.1.2>10.42.2.2:9090/tcp", "10.42.1.2>10.42.2.3:9090/tcp", "10.42.1.2>8.8.8.8:53/udp",
	"10.42.1.2>10.42.1.2:1/tcp", "10.42.1.2>10.43.0.10:53/udp", "10.42.1.2>10.43.0.10:6443/tcp",
}

func parse(text string) flow {
	from, rest, _ := strings.Cut(text, ">")
	at, proto, _ := strings.Cut(rest, "/")
	to := netip.MustParseAddrPort(at)
	return flow{from: netip.MustParseAddr(from), to: to.Addr(), port: to.Port(), proto: proto}
}

func TestFlows(t *testing.T) {
	in := func(i ...int) (out []string) {
		for _, n := range i {
			out = append(out, flows[n])
		}
		return out
	}
	always := []int{8, 9}
	outgoing := append([]int{5, 6, 7, 10}, always...)
	incoming := append([]int{0, 1, 2, 3, 4}, always...)
	for _, c := range []struct {
		name, spec string
		allowed    []string
	}{
		{"no policy for this pod", "{podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress]}", flows},
		{"deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}", in(always...)},
		{"deny ingress", "{podSelector: {}, policyTypes: [Ingress]}", in(outgoing...)},
		{"types by default", "{podSelector: {}}", in(outgoing...)},
		{"types by default, with egress", "{podSelector: {}, egress: [{ports: [{port: 9090}]}]}", in(append([]int{5, 6}, always...)...)},
		{"everybody", "{podSelector: {}, ingress: [{}]}", flows},
		{"pods of the namespace", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", in(append([]int{0}, outgoing...)...)},
		{"pods of all namespaces, without the host's", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", in(append([]int{0, 1, 2, 3}, outgoing...)...)},
		{"one that nobody matches", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: x}}}]}]}", in(outgoing...)},
		{"a block without a part", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.42.0.0/16]}}]}]}", in(append([]int{4}, outgoing...)...)},
		{"a block of IPv6 only", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 'fd00::/8'}}]}]}", in(outgoing...)},
		{"a port", "{podSelector: {}, ingress: [{ports: [{port: 8080}]}]}", in(append([]int{0, 1, 4}, outgoing...)...)},
		{"a range", "{podSelector: {}, ingress: [{ports: [{port: 90, endPort: 100}]}]}", in(append([]int{3}, outgoing...)...)},
		{"a protocol", "{podSelector: {}, ingress: [{ports: [{protocol: UDP}]}]}", in(append([]int{2}, outgoing...)...)},
		{"a port by the selected pod's name for it", "{podSelector: {}, ingress: [{ports: [{port: web}]}]}", in(append([]int{0, 1, 4}, outgoing...)...)},
		{"a port by the other pod's name for it", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}", in(append([]int{5}, incoming...)...)},
		{"a port by name of selected peers", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {name: desk}}}], ports: [{port: web}]}]}", in(incoming...)},
		{"a block that is not readable", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}", in(outgoing...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			// In both families alike, each pod under its address of it.
			for _, self := range []Self{self, self6} {
				spec := c.spec
				if self.family() == knftables.IPv6Family {
					spec = other.Replace(spec)
				}
				m, err := compile(world(t, spec), self)
				if (err != nil) != strings.Contains(c.spec, "nonsense") {
					t.Fatal(err)
				}
				for _, text := range flows {
					f := parse(text)
					if self.family() == knftables.IPv6Family {
						f.from, f.to = netip.MustParseAddr(second(f.from.String())), netip.MustParseAddr(second(f.to.String()))
					}
					if got, want := m.allows(f), slices.Contains(c.allowed, text); got != want {
						t.Errorf("%s: %s is allowed: %v, want %v", self.family(), text, got, want)
					}
				}
			}
		})
	}
}

func TestPodsComeAndGoAsElements(t *testing.T) {
	o := world(t, "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 80, endPort: 90}, {port: 85, endPort: 95}, {port: 97}, {port: 96}]}]}")
	m, err := compile(o, self)
	if err != nil {
		t.Fatal(err)
	}
	before := m.rules()
	want := []string{"ip saddr @policy-peers-ingress-shop/p0-0 meta l4proto tcp th dport { 80-97 } accept"}
	if got := before.Chains["policy-ingress-shop/p0"].Rules; !slices.Equal(got, want) {
		t.Errorf("rules %q, want %q", got, want)
	}
	o.pods = slices.DeleteFunc(slices.Clone(o.pods), func(p *corev1.Pod) bool { return p.Name == "c" })
	if m, err = compile(o, self); err != nil {
		t.Fatal(err)
	}
	after := m.rules()
	for name, chain := range before.Chains {
		if !slices.Equal(chain.Rules, after.Chains[name].Rules) {
			t.Errorf("chain %s has changed", name)
		}
	}
	if !narrower(before, after) || narrower(after, before) || narrower(before, before) {
		t.Error("a pod less allows less, and only that")
	}
	if _, there := after.Sets["policy-peers-ingress-shop/p0-0"].Elements["10.42.2.3"]; there {
		t.Error("the pod is still there")
	}
}
