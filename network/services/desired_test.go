package services

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

func self() Self {
	return Self{Node: "here", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), DNS: netip.MustParseAddr("10.43.0.10")}
}

func self6() Self {
	return Self{Node: "here", ClusterCIDR: netip.MustParsePrefix("fd42::/56"), ServiceCIDR: netip.MustParsePrefix("fd43::/112"), DNS: netip.MustParseAddr("fd43::a")}
}

// six is the IPv6 address that goes with an IPv4 one of the tests.
func six(v4 string) string {
	a := netip.MustParseAddr(v4).As4()
	switch {
	case a[0] == 10 && a[1] == 42:
		return fmt.Sprintf("fd42:0:0:%x::%x", a[2], a[3])
	case a[0] == 10:
		return netip.MustParseAddr(fmt.Sprintf("fd43::%x:%x", a[2], a[3])).String()
	}
	return fmt.Sprintf("2001:db8::%x:%x", a[0], a[3])
}

// sixText turns the addresses in rules into those of IPv6.
func sixText(text string) string {
	text = strings.NewReplacer("10.42.0.0/16", "fd42::/56", "ip saddr", "ip6 saddr", "ip daddr", "ip6 daddr", "ip addr", "ip6 addr", "ipv4_addr", "ipv6_addr").Replace(text)
	return v4.ReplaceAllStringFunc(text, func(m string) string {
		parts := v4.FindStringSubmatch(m)
		switch before, addr, port := parts[1], six(parts[2]), parts[3]; {
		case before == "__":
			return before + strings.ReplaceAll(addr, ":", "_") + port
		case port != "":
			return before + "[" + addr + "]" + port
		default:
			return before + addr
		}
	})
}

var v4 = regexp.MustCompile(`(__|\b)(\d+\.\d+\.\d+\.\d+)(:\d+)?`)

// dual gives a Service its IPv6 address as well, and a slice its counterpart of IPv6.
func dual(svc *corev1.Service, of *discoveryv1.EndpointSlice) (*corev1.Service, []*discoveryv1.EndpointSlice) {
	if svc != nil && svc.Spec.ClusterIP != corev1.ClusterIPNone {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP, six(svc.Spec.ClusterIP)}
	}
	if of == nil {
		return svc, nil
	}
	second := of.DeepCopy()
	second.Name, second.AddressType = of.Name+"6", discoveryv1.AddressTypeIPv6
	for i := range second.Endpoints {
		second.Endpoints[i].Addresses[0] = six(second.Endpoints[i].Addresses[0])
	}
	return svc, []*discoveryv1.EndpointSlice{of, second}
}

// service reads "ns/name ip port[/nodePort][/udp] [option…]".
func service(t testing.TB, text string) *corev1.Service {
	t.Helper()
	f := strings.Fields(text)
	ns, name, _ := strings.Cut(f[0], "/")
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: f[1]}}
	port := corev1.ServicePort{Protocol: corev1.ProtocolTCP}
	for i, part := range strings.Split(f[2], "/") {
		switch {
		case part == "udp":
			port.Protocol = corev1.ProtocolUDP
		case i == 0:
			fmt.Sscan(part, &port.Port)
		default:
			fmt.Sscan(part, &port.NodePort)
		}
	}
	svc.Spec.Ports = []corev1.ServicePort{port}
	local := corev1.ServiceInternalTrafficPolicyLocal
	for _, option := range f[3:] {
		switch option {
		case "external-local":
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		case "internal-local":
			svc.Spec.InternalTrafficPolicy = &local
		case "sticky":
			svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		default:
			t.Fatalf("unknown option %q", option)
		}
	}
	return svc
}

// slice reads "ns/service port [address@node[=state]…]", where state is ready (the
// default), unready, serving (and terminating) or gone (terminating, not serving).
func slice(t testing.TB, proto corev1.Protocol, text string) *discoveryv1.EndpointSlice {
	t.Helper()
	f := strings.Fields(text)
	ns, name, _ := strings.Cut(f[0], "/")
	var port int32
	fmt.Sscan(f[1], &port)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: ns, Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port, Protocol: &proto}},
	}
	yes, no := true, false
	for _, e := range f[2:] {
		at, state, _ := strings.Cut(e, "=")
		addr, node, _ := strings.Cut(at, "@")
		ep := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
		switch state {
		case "", "ready":
			ep.Conditions = discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes}
		case "unready":
			ep.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no}
		case "serving":
			ep.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
		case "gone":
			ep.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}
		default:
			t.Fatalf("unknown state %q", state)
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return s
}

func alive(node string) bool { return !strings.HasPrefix(node, "dead") }

// wanted is what a fresh start comes to.
type wanted struct {
	rules  nft.State
	udp    map[frontend]endpoints
	health map[uint16]health
}

// desired is computed by a computer that knows nothing from before.
func desired(services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice, split func(*corev1.Service) *Split, alive func(node string) bool, self Self) wanted {
	w := wanted{base(self), map[frontend]endpoints{}, map[uint16]health{}}
	keys, now := those(services, endpointSlices, split, alive)
	w.apply(newComputer(self).update(slices.Values(keys), now))
	return w
}

func (w wanted) apply(c change) {
	w.rules.Apply(c.rules)
	c.udp.apply(w.udp)
	c.health.apply(w.health)
}

// those are the Services' keys, and what a computer asks for.
func those(services []*corev1.Service, endpointSlices []*discoveryv1.EndpointSlice, split func(*corev1.Service) *Split, alive func(node string) bool) (keys []string, now objects) {
	byKey, of := map[string]*corev1.Service{}, map[string][]*discoveryv1.EndpointSlice{}
	for _, svc := range services {
		key := svc.Namespace + "/" + svc.Name
		byKey[key], keys = svc, append(keys, key)
	}
	for _, s := range endpointSlices {
		of[serviceKey(s)] = append(of[serviceKey(s)], s)
	}
	return keys, objects{
		service: func(key string) *corev1.Service { return byKey[key] },
		slices:  func(key string) []*discoveryv1.EndpointSlice { return of[key] }, split: split, alive: alive,
	}
}

// render is what desired adds to the base, as nft text.
func render(t testing.TB, family knftables.Family, state nft.State) []string {
	t.Helper()
	fake := knftables.NewFake(family, "rookery")
	if err := nft.New(fake, slog.New(slog.DiscardHandler)).Set(t.Context(), "services", state); err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(fake.Dump()) {
		line = strings.TrimSpace(strings.ReplaceAll(line, string(family)+" rookery ", ""))
		if i := strings.Index(line, ` comment "v1:`); i > 0 {
			line = line[:i]
		}
		if strings.HasPrefix(line, "add rule") || strings.HasPrefix(line, "add element") || strings.HasPrefix(line, "add set") {
			out = append(out, strings.TrimPrefix(line, "add "))
		}
	}
	return out
}

func TestDesired(t *testing.T) {
	for _, test := range []struct {
		name, service, slice string
		want                 string
	}{
		{"two endpoints", "d/web 10.43.0.5 80", "d/web 8080 10.42.1.2@a 10.42.2.2@b", `
			rule service-ips-tcp-one-of-2 meta l4proto tcp dnat ip addr . port to ip daddr . tcp dport . numgen random mod 2 map @service-ips-tcp-endpoints
			element service-ips { 10.43.0.5 . tcp . 80 : goto service-ips-tcp-one-of-2 }
			element service-ips-tcp-endpoints { 10.43.0.5 . 80 . 0 : 10.42.1.2 . 8080 }
			element service-ips-tcp-endpoints { 10.43.0.5 . 80 . 1 : 10.42.2.2 . 8080 }`},
		{"a dead node's endpoint", "d/web 10.43.0.5 80", "d/web 8080 10.42.1.2@a 10.42.2.2@dead", `
			rule service-ips-tcp-one-of-1 meta l4proto tcp dnat ip addr . port to ip daddr . tcp dport . numgen random mod 1 map @service-ips-tcp-endpoints
			element service-ips { 10.43.0.5 . tcp . 80 : goto service-ips-tcp-one-of-1 }
			element service-ips-tcp-endpoints { 10.43.0.5 . 80 . 0 : 10.42.1.2 . 8080 }`},
		{"only ready ones", "d/web 10.43.0.5 80", "d/web 8080 10.42.1.2@a 10.42.1.3@a=unready 10.42.1.4@a=serving 10.42.1.5@a=gone", `
			rule service-ips-tcp-one-of-1 meta l4proto tcp dnat ip addr . port to ip daddr . tcp dport . numgen random mod 1 map @service-ips-tcp-endpoints
			element service-ips { 10.43.0.5 . tcp . 80 : goto service-ips-tcp-one-of-1 }
			element service-ips-tcp-endpoints { 10.43.0.5 . 80 . 0 : 10.42.1.2 . 8080 }`},
		{"terminating but serving, as the last resort", "d/web 10.43.0.5 80", "d/web 8080 10.42.1.3@a=unready 10.42.1.4@a=serving 10.42.1.5@a=gone", `
			rule service-ips-tcp-one-of-1 meta l4proto tcp dnat ip addr . port to ip daddr . tcp dport . numgen random mod 1 map @service-ips-tcp-endpoints
			element service-ips { 10.43.0.5 . tcp . 80 : goto service-ips-tcp-one-of-1 }
			element service-ips-tcp-endpoints { 10.43.0.5 . 80 . 0 : 10.42.1.4 . 8080 }`},
		{"none", "d/web 10.43.0.5 80", "d/web 8080", ``},
		{"none, with a node port", "d/web 10.43.0.5 80/30080", "d/web 8080 10.42.2.2@dead", `
			element nodeport-rejects { tcp . 30080 }`},
		{"UDP with a node port", "d/dns 10.43.0.6 53/30053/udp", "d/dns 5353 10.42.1.2@a", `
			rule service-ips-udp-one-of-1 meta l4proto udp dnat ip addr . port to ip daddr . udp dport . numgen random mod 1 map @service-ips-udp-endpoints
			rule service-nodeports-udp-one-of-1 meta l4proto udp dnat ip addr . port to udp dport . numgen random mod 1 map @service-nodeports-udp-endpoints
			element service-ips { 10.43.0.6 . udp . 53 : goto service-ips-udp-one-of-1 }
			element service-ips-udp-endpoints { 10.43.0.6 . 53 . 0 : 10.42.1.2 . 5353 }
			element service-nodeports { udp . 30053 : goto service-nodeports-udp-one-of-1 }
			element service-nodeports-udp-endpoints { 30053 . 0 : 10.42.1.2 . 5353 }`},
		{"external traffic local", "d/web 10.43.0.5 80/30080 external-local", "d/web 8080 10.42.1.2@here 10.42.2.2@b", `
			rule cluster-d/web/tcp/80 meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.42.1.2 . 8080 , 1 : 10.42.2.2 . 8080 }
			rule external-d/web/tcp/80 ip saddr 10.42.0.0/16 goto cluster-d/web/tcp/80
			rule external-d/web/tcp/80 fib saddr type local goto cluster-d/web/tcp/80
			rule external-d/web/tcp/80 goto local-d/web/tcp/80
			rule local-d/web/tcp/80 meta l4proto tcp dnat to 10.42.1.2:8080
			element service-ips { 10.43.0.5 . tcp . 80 : goto cluster-d/web/tcp/80 }
			element service-nodeports { tcp . 30080 : goto external-d/web/tcp/80 }`},
		{"internal traffic local, all elsewhere", "d/web 10.43.0.5 80 internal-local", "d/web 8080 10.42.2.2@b", `
			rule local-d/web/tcp/80 drop
			element service-ips { 10.43.0.5 . tcp . 80 : goto local-d/web/tcp/80 }`},
		{"sticky", "d/web 10.43.0.5 80 sticky", "d/web 8080 10.42.1.2@a", `
			set affinity-d/web/tcp/80__10.42.1.2/8080-10800 { type ipv4_addr ; flags dynamic,timeout ; timeout 10800s ; }
			rule cluster-d/web/tcp/80 ip saddr @affinity-d/web/tcp/80__10.42.1.2/8080-10800 goto endpoint-d/web/tcp/80__10.42.1.2/8080
			rule cluster-d/web/tcp/80 numgen random mod 1 vmap { 0 : goto endpoint-d/web/tcp/80__10.42.1.2/8080 }
			rule endpoint-d/web/tcp/80__10.42.1.2/8080 update @affinity-d/web/tcp/80__10.42.1.2/8080-10800 { ip saddr }
			rule endpoint-d/web/tcp/80__10.42.1.2/8080 meta l4proto tcp dnat to 10.42.1.2:8080
			element service-ips { 10.43.0.5 . tcp . 80 : goto cluster-d/web/tcp/80 }`},
		{"an endpoint outside", "d/web 10.43.0.5 80", "d/web 8080 192.0.2.9@a", `
			rule service-ips-tcp-one-of-1 meta l4proto tcp dnat ip addr . port to ip daddr . tcp dport . numgen random mod 1 map @service-ips-tcp-endpoints
			element outside-endpoints { 192.0.2.9 . tcp . 8080 }
			element service-ips { 10.43.0.5 . tcp . 80 : goto service-ips-tcp-one-of-1 }
			element service-ips-tcp-endpoints { 10.43.0.5 . 80 . 0 : 192.0.2.9 . 8080 }`},
		{"headless", "d/web None 80", "d/web 8080 10.42.1.2@a", ``},
	} {
		t.Run(test.name, func(t *testing.T) {
			svc := service(t, test.service)
			svc, of := dual(svc, slice(t, svc.Spec.Ports[0].Protocol, test.slice))
			for _, self := range []Self{self(), self6()} {
				got := render(t, self.family(), desired([]*corev1.Service{svc}, of, nil, alive, self).rules)
				empty := render(t, self.family(), desired(nil, nil, nil, alive, self).rules)
				got = slices.DeleteFunc(got, func(line string) bool { return slices.Contains(empty, line) })
				wanted := test.want
				if self.family() == knftables.IPv6Family {
					wanted = sixText(wanted)
				}
				var want []string
				for line := range strings.Lines(wanted) {
					if line = strings.TrimSpace(line); line != "" {
						want = append(want, line)
					}
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("%s: got:\n%s\nwant:\n%s", self.family(), strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			}
		})
	}
}

// A Service that is not of a family has no rules of it, not even for its NodePort.
func TestServiceOfOneFamily(t *testing.T) {
	svc := service(t, "d/web 10.43.0.5 80/30080")
	_, of := dual(nil, slice(t, corev1.ProtocolTCP, "d/web 8080 10.42.1.2@here"))
	svc.Spec.ExternalIPs = []string{"192.0.2.1", "2001:db8::1"}
	got := desired([]*corev1.Service{svc}, of, nil, alive, self6()).rules
	if want := desired(nil, nil, nil, alive, self6()).rules; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := Explain(svc, of, nil, alive, self6()); got != nil {
		t.Errorf("explained: %v", got)
	}
	if got := Explain(svc, of, nil, alive, self()); len(got) != 1 {
		t.Errorf("explained: %v", got)
	}
}

// many is n Services with three endpoints each, of which change rewrites one.
func many(t testing.TB, n int) ([]*corev1.Service, []*discoveryv1.EndpointSlice) {
	var services []*corev1.Service
	var endpointSlices []*discoveryv1.EndpointSlice
	for i := range n {
		services = append(services, service(t, fmt.Sprintf("d/s%04d 10.43.%d.%d 80/%d", i, 1+i/250, 1+i%250, 30000+i)))
		endpointSlices = append(endpointSlices, slice(t, corev1.ProtocolTCP, fmt.Sprintf("d/s%04d 8080 10.42.1.%d@a 10.42.2.%d@b 10.42.3.%d@c", i, 2+i%250, 2+i%250, 2+i%250)))
	}
	return services, endpointSlices
}

func TestOneServiceChangesAlone(t *testing.T) {
	fake := knftables.NewFake(knftables.IPv4Family, "rookery")
	table := nft.New(fake, slog.New(slog.DiscardHandler))
	services, endpointSlices := many(t, 50)
	set := func() {
		t.Helper()
		if err := table.Set(t.Context(), "services", desired(services, endpointSlices, nil, alive, self()).rules); err != nil {
			t.Fatal(err)
		}
	}
	set()
	for _, c := range []struct {
		endpoints string
		want      int // operations
	}{
		{"10.42.1.9@a 10.42.2.9@b 10.42.4.4@d", 2 * 2},         // an element of each frontend is replaced
		{"10.42.1.9@a 10.42.2.9@b", 2*2 + 2*1 + 2*2},           // where it leads, one less, and the chains of two
		{"10.42.1.9@a 10.42.2.9@b 10.42.4.4@d", 2*2 + 2*1 + 2}, // the chains of two are emptied
		{"10.42.1.9@a 10.42.2.9@b 10.42.3.9@c", 2 * 2},
	} {
		endpointSlices[7] = slice(t, corev1.ProtocolTCP, "d/s0007 8080 "+c.endpoints)
		set()
		for line := range strings.Lines(fake.LastTransaction.String()) {
			if !strings.Contains(line, "{ 10.43.1.8 . ") && !strings.Contains(line, " 30007 ") && !strings.Contains(line, "-one-of-2") {
				t.Errorf("also written: %s", line)
			}
		}
		if n := fake.LastTransaction.NumOperations(); n != c.want {
			t.Errorf("%d operations, want %d:\n%s", n, c.want, fake.LastTransaction)
		}
	}
}

// faulty is a kernel that refuses one in four writes, or has done them although it says no.
type faulty struct {
	knftables.Interface
	rand *rand.Rand
}

var errFault = errors.New("no buffer space")

func (f faulty) Run(ctx context.Context, tx *knftables.Transaction) error {
	fails, done := f.rand.IntN(4) == 0, f.rand.IntN(2) == 0
	if fails && !done {
		return errFault
	}
	err := f.Interface.Run(ctx, tx)
	if fails {
		err = errFault
	}
	return err
}

// However Services change, writes fail and daemons are killed between the two families,
// what has been written in the end is what a fresh start would write.
func TestRandomWalkOfServices(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		byKey, of := map[string]*corev1.Service{}, map[string][]*discoveryv1.EndpointSlice{}
		now := objects{service: func(key string) *corev1.Service { return byKey[key] }, slices: func(key string) []*discoveryv1.EndpointSlice { return of[key] }, alive: alive}
		fakes, rules := map[knftables.Family]*knftables.Fake{}, map[knftables.Family]kernel{}
		var families []*family
		start := func() {
			families = nil
			for _, self := range []Self{self(), self6()} {
				ip := self.family()
				rules[ip] = kernel{nft.New(faulty{fakes[ip], r}, slog.New(slog.DiscardHandler))}
				families = append(families, &family{self: self, udp: map[frontend]endpoints{}, health: map[uint16]health{}})
			}
		}
		for _, ip := range []knftables.Family{knftables.IPv4Family, knftables.IPv6Family} {
			fakes[ip] = knftables.NewFake(ip, "rookery")
		}
		start()
		for step := range 30 {
			changed := map[string]struct{}{}
			for range 1 + r.IntN(3) {
				i := r.IntN(6)
				key := fmt.Sprintf("d/s%d", i)
				changed[key] = struct{}{}
				proto := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}[r.IntN(2)]
				// Some ask for the same address or node port.
				text := fmt.Sprintf("d/s%d 10.43.1.%d 80/%d/%s %s", i, 1+r.IntN(6), 30000+r.IntN(6), strings.ToLower(string(proto)), []string{"", "external-local", "internal-local", "sticky"}[r.IntN(4)])
				if byKey[key], of[key] = nil, nil; r.IntN(4) > 0 {
					svc := service(t, text)
					svc.Spec.HealthCheckNodePort = 32000 + r.Int32N(3)
					text := key + " 8080"
					for range r.IntN(4) {
						text += fmt.Sprintf(" 10.42.1.%d@%s=%s", 2+r.IntN(9), []string{"here", "b", "dead"}[r.IntN(3)], []string{"ready", "serving", "unready"}[r.IntN(3)])
					}
					byKey[key], of[key] = dual(svc, slice(t, proto, text))
				}
			}
			for i, f := range families {
				ip := f.self.family()
				if i == 1 && r.IntN(8) == 0 {
					start() // the daemon was killed before it came to this family
					f = families[i]
				}
				for try, done := 0, false; !done; try++ {
					keys := maps.Keys(changed)
					if !f.current { // as the controller does
						keys = maps.Keys(byKey)
					}
					_, err := f.write(t.Context(), rules[ip], "services", keys, now)
					if done = err == nil; !done && (!errors.Is(err, errFault) || try > 100) {
						t.Fatalf("seed %d, step %d: %v", seed, step, err)
					}
				}
			}
			for _, f := range families {
				if !f.current {
					continue // it was just started
				}
				var all []*corev1.Service
				var every []*discoveryv1.EndpointSlice
				for key, svc := range byKey {
					if svc != nil {
						all, every = append(all, svc), append(every, of[key]...)
					}
				}
				want := desired(all, every, nil, alive, f.self)
				if !reflect.DeepEqual(f.udp, want.udp) || !reflect.DeepEqual(f.health, want.health) {
					t.Fatalf("seed %d, step %d: UDP %v, health %v, want %v, %v", seed, step, f.udp, f.health, want.udp, want.health)
				}
				for try, done := 0, false; !done; try++ {
					var err error
					if done, err = rules[f.self.family()].Sweep(t.Context()); !done && try > 100 {
						t.Fatalf("seed %d, step %d: %v", seed, step, err)
					}
				}
				fresh := knftables.NewFake(f.self.family(), "rookery")
				if err := nft.New(fresh, slog.New(slog.DiscardHandler)).Set(t.Context(), "services", want.rules); err != nil {
					t.Fatal(err)
				}
				if got, want := sorted(fakes[f.self.family()].Dump()), sorted(fresh.Dump()); got != want {
					t.Fatalf("seed %d, step %d: after the walk:\n%s\nfresh:\n%s", seed, step, got, want)
				}
			}
		}
	}
}

// sorted orders the elements, which have no order; rules have one that a mark holds.
func sorted(dump string) string {
	lines := strings.Split(dump, "\n")
	slices.SortStableFunc(lines, func(a, b string) int {
		key := func(s string) string {
			if strings.HasPrefix(s, "add element") {
				return s
			}
			return "" // stays where it is, before them
		}
		return strings.Compare(key(a), key(b))
	})
	return strings.Join(lines, "\n")
}

func TestTurns(t *testing.T) {
	for _, weights := range []map[string]int{{"a": 1}, {"a": 50, "b": 50}, {"a": 5, "b": 95}, {"a": 1, "b": 2}, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1000}, {"a": 333, "b": 333, "c": 334, "d": 1}} {
		got, total := map[string]int{}, 0
		for _, name := range turns(weights) {
			got[name]++
		}
		for _, w := range weights {
			total += w
		}
		for name, w := range weights {
			if exact := float64(w) * slots / float64(total); float64(got[name]) < min(1, exact) || got[name] == 0 || float64(got[name]) > exact+1 || float64(got[name]) < exact-1 {
				t.Errorf("%v: %s gets %d of %d", weights, name, got[name], slots)
			}
		}
	}
	// The small share is spread, not at one end.
	first := 0
	for i, name := range turns(map[string]int{"few": 10, "many": 90}) {
		if name == "few" && i < 50 {
			first++
		}
	}
	if first != 5 {
		t.Errorf("%d of 10 are in the first half", first)
	}
	many := map[string]int{}
	for i := range slots {
		many[fmt.Sprint(i)] = i + 1
	}
	if got := turns(many); len(got) != slots {
		t.Error(got)
	}
}

// A Service without endpoints refuses no connection that the machine's own listener already has.
func TestRefusalsAreOfNewConnections(t *testing.T) {
	s := base(self())
	for _, chain := range []string{"filter-forward", "filter-output", "filter-input"} {
		found := false
		for _, rule := range s.Chains[chain].Rules {
			if !strings.Contains(rule, "@external-rejects") && !strings.Contains(rule, "@nodeport-rejects") {
				continue
			}
			if found = true; !strings.HasPrefix(rule, "ct state new ") {
				t.Errorf("%s ends established connections: %s", chain, rule)
			}
		}
		if !found {
			t.Errorf("%s refuses nothing", chain)
		}
	}
}
