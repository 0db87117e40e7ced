package network_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/network"
)

// However pods with host ports, peers, Services, their endpoints and policies have come and gone,
// after each step the kernel is as after a fresh start with those that there are: on a twin of
// the machine, which is made anew each time.
func TestWalkEndsAsAFreshStart(t *testing.T) {
	for _, backend := range []string{"wireguard", "vxlan", "direct"} {
		t.Run(backend, func(t *testing.T) {
			l := newLabOf(t, 2, backend, "46")
			seed := rand.Uint64()
			t.Log("seed", seed)
			w := &walk{m: l.hosts[0], twin: l.hosts[1], rand: rand.New(rand.NewPCG(seed, 0)), pods: map[string]*pods{}, ports: map[int32]string{}, services: map[int]request{}, policies: map[int]*networkingv1.NetworkPolicy{}}
			w.separate()
			w.m.up(w.objects())
			for i := range 20 {
				did := w.step()
				w.fresh()
				// Not all that a start or a change does is done when the daemon answers: the Services' rules come by themselves.
				eventually(t, patience, func() string {
					have, want := canonical(w.m), canonical(w.twin)
					if slices.Equal(have, want) {
						return ""
					}
					return fmt.Sprintf("after step %d, %s, not after a fresh start:\n%s\nafter a fresh start, not after the step:\n%s",
						i, did, strings.Join(without(have, want), "\n"), strings.Join(without(want, have), "\n"))
				})
			}
		})
	}
}

type walk struct {
	m, twin  *machine
	rand     *rand.Rand
	count    int
	pods     map[string]*pods
	ports    map[int32]string // host ports, by whose they are
	peers    []network.Peer
	dead     []string
	services map[int]request // a Service and its slices
	policies map[int]*networkingv1.NetworkPolicy
}

// pods are one on the machine and one on its twin, as the API knows it.
type pods struct {
	*pod
	twin *pod
	api  *corev1.Pod
}

// separate makes the second machine one that has all of the first's but its place on the network.
func (w *walk) separate() {
	w.m.lab.ip("-n", w.m.lab.name+"-lan", "link", "set", "l2", "nomaster")
	w.twin.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
	w.twin.run("ip", "addr", "add", w.m.addr.String()+"/24", "dev", "eth0")
	w.twin.run("ip", "addr", "add", w.m.other.String()+"/64", "dev", "eth0", "nodad")
	w.twin.name, w.twin.addr, w.twin.other, w.twin.ranges, w.twin.key = w.m.name, w.m.addr, w.m.other, w.m.ranges, w.m.key
}

// step changes something, and says what.
func (w *walk) step() string {
	switch w.rand.IntN(10) {
	case 0, 1, 2: // a pod comes, often with a host port
		w.count++
		uid := fmt.Sprint("pod", w.count)
		var ports []corev1.ContainerPort
		if host := 8000 + w.rand.Int32N(20); w.ports[host] == "" && w.rand.IntN(3) > 0 {
			w.ports[host] = uid
			proto := []corev1.Protocol{"TCP", "UDP"}[w.rand.IntN(2)]
			ip := []string{"", "0.0.0.0", "::", "fd77::1", "192.168.77.1", "127.0.0.1"}[w.rand.IntN(6)]
			ports = append(ports, port(ip, proto, host))
		}
		p := &pods{pod: w.m.pod(uid, ports...), twin: w.twin.process(uid)}
		p.api = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "test", Name: uid, UID: types.UID(uid), Labels: map[string]string{"app": []string{"a", "b"}[w.rand.IntN(2)]}}}
		p.api.Spec.NodeName = w.m.name
		p.api.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}
		for _, addr := range p.addrs {
			p.api.Status.PodIPs = append(p.api.Status.PodIPs, corev1.PodIP{IP: addr})
		}
		w.pods[uid] = p
		w.publish()
		return "the pod " + uid
	case 3: // one goes
		if len(w.pods) == 0 {
			return "nothing"
		}
		uids := slices.Sorted(maps.Keys(w.pods))
		uid := uids[w.rand.IntN(len(uids))]
		w.m.ask(request{Verb: "detach", UID: uid})
		delete(w.pods, uid)
		maps.DeleteFunc(w.ports, func(_ int32, of string) bool { return of == uid })
		w.publish()
		return uid + " gone"
	case 4, 5: // peers come, go, die and move
		w.peers, w.dead = nil, nil
		for i := 2; i <= 6; i++ {
			if w.rand.IntN(2) == 0 {
				continue
			}
			move := w.rand.IntN(2) * 100
			p := network.Peer{
				Name: fmt.Sprint("h", i), Endpoint: netip.AddrFrom4([4]byte{192, 168, 77, byte(i + move)}), Other: netip.MustParseAddr(fmt.Sprintf("fd77::%d", i+move)),
				Alive: w.rand.IntN(3) > 0, WireGuardKey: network.Key{byte(i)},
			}
			if !p.Alive {
				w.dead = append(w.dead, p.Name)
			}
			for _, family := range "46" {
				p.PodCIDRs = append(p.PodCIDRs, ranges(family, i).PodCIDR)
			}
			w.peers = append(w.peers, p)
		}
		w.m.ask(request{Verb: "peers", Peers: w.peers})
		w.m.ask(request{Verb: "dead", Dead: w.dead})
		return "the peers"
	case 6: // a policy comes, changes or goes
		i := w.rand.IntN(3)
		delete(w.policies, i)
		if w.rand.IntN(4) > 0 {
			one := func(of ...string) string { return of[w.rand.IntN(len(of))] }
			peer := one("{podSelector: {matchLabels: {app: a}}}", "{namespaceSelector: {}}", "{ipBlock: {cidr: 10.42.0.0/16, except: [10.42.3.0/24]}}", "{ipBlock: {cidr: 'fd42::/56'}}")
			text := policyOf("test", fmt.Sprint("p", i), "{podSelector: "+one("{}", "{matchLabels: {app: a}}")+", policyTypes: "+one("[Ingress]", "[Egress]", "[Ingress, Egress]")+
				", ingress: [{from: ["+peer+"], ports: [{port: web}, {port: 90, endPort: 95}]}], egress: [{to: ["+peer+"]}]}")
			w.policies[i] = &networkingv1.NetworkPolicy{}
			if err := yaml.UnmarshalStrict([]byte(text), w.policies[i]); err != nil {
				w.m.lab.t.Fatalf("%v in %s", err, text)
			}
		}
		w.publish()
		return fmt.Sprint("the policy p", i)
	default: // a Service comes, changes, with its endpoints, or goes
		i := w.rand.IntN(4)
		delete(w.services, i)
		if w.rand.IntN(4) > 0 {
			w.services[i] = w.service(i)
		}
		w.publish()
		return fmt.Sprint("the Service s", i)
	}
}

// service is one whose endpoints are pods here and, made up, on other peers.
func (w *walk) service(i int) request {
	var ends []*pod
	for _, uid := range slices.Sorted(maps.Keys(w.pods)) {
		if w.rand.IntN(2) == 0 {
			ends = append(ends, w.pods[uid].pod)
		}
	}
	for peer := 2; peer <= 6; peer++ {
		if w.rand.IntN(3) == 0 {
			ends = append(ends, &pod{m: &machine{name: fmt.Sprint("h", peer)}, addrs: []string{fmt.Sprintf("10.42.%d.9", peer), fmt.Sprintf("fd42:0:0:%d::9", peer)}})
		}
	}
	all, slices := w.m.lab.hello(ends...)
	svc := all[0]
	svc.Name = fmt.Sprint("s", i)
	svc.Spec.ClusterIPs = []string{fmt.Sprintf("10.43.0.%d", 50+i), fmt.Sprintf("fd43::%d", 50+i)}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	for k := range svc.Spec.Ports {
		svc.Spec.Ports[k].NodePort += int32(i)
	}
	if w.rand.IntN(3) == 0 {
		svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	if w.rand.IntN(3) == 0 {
		svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	}
	for _, s := range slices {
		s.Name, s.Labels = svc.Name+s.Name, map[string]string{discoveryv1.LabelServiceName: svc.Name}
	}
	return request{Services: all, Slices: slices}
}

// objects are all that the API has.
func (w *walk) objects() (r request) {
	for _, i := range slices.Sorted(maps.Keys(w.services)) {
		r.Services, r.Slices = append(r.Services, w.services[i].Services...), append(r.Slices, w.services[i].Slices...)
	}
	for _, uid := range slices.Sorted(maps.Keys(w.pods)) {
		r.Pods = append(r.Pods, w.pods[uid].api)
	}
	for _, i := range slices.Sorted(maps.Keys(w.policies)) {
		r.Policies = append(r.Policies, w.policies[i])
	}
	r.Namespaces = []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "test"}}}
	return r
}

func (w *walk) publish() {
	w.m.lab.t.Helper()
	r := w.objects()
	for _, r.Verb = range []string{"policies", "services"} {
		w.m.ask(r)
	}
}

// fresh takes away all that the twin's daemon has made in the kernel, and starts it anew with
// what there is now; addresses and host ports are what the machine remembers on disk.
func (w *walk) fresh() {
	w.twin.kill()
	w.twin.run("sh", "-c", `for family in ip ip6; do nft delete table $family rookery; done
for device in $(ip -o link | sed -n 's/^[0-9]*: \(rk[^@:]*\|rookery[^@:]*\).*/\1/p'); do ip link delete "$device"; done
for proto in 82 83; do ip route flush proto $proto; ip -6 route flush proto $proto; done
true`)
	run(w.m.lab.t, "sh", "-c", fmt.Sprintf("mkdir -p %[1]s && rm -rf %[2]s && cp -a %[1]s %[2]s", w.m.config().Dir, w.twin.config().Dir))
	w.twin.up(w.objects())
	w.twin.ask(request{Verb: "peers", Peers: w.peers})
	w.twin.ask(request{Verb: "dead", Dead: w.dead})
	for _, uid := range slices.Sorted(maps.Keys(w.pods)) {
		p := w.pods[uid]
		w.twin.ask(request{Verb: "attach", UID: uid, PID: p.twin.pid, Ports: p.ports})
	}
}

// settled is what there is in the kernel once it has stopped changing.
func settled(m *machine) (have []string) {
	m.lab.t.Helper()
	eventually(m.lab.t, patience, func() string {
		before := have
		if have = canonical(m); slices.Equal(before, have) {
			return ""
		}
		return fmt.Sprintf("it goes on changing, the last time by:\n%s", strings.Join(without(have, before), "\n"))
	})
	return have
}

// canonical is what there is in the kernel, in an order that does not tell how it came there.
func canonical(m *machine) (out []string) {
	for _, f := range m.ranges {
		for _, o := range objects(m, string(f.Table())) {
			out = append(out, string(f.Table())+" "+o.text)
		}
	}
	for _, args := range []string{"bridge fdb", "ip neigh show nud permanent", "ip route", "ip -6 route show proto 82", "ip -6 route show proto 83", "ip -br addr", "ip -br link"} {
		for _, line := range strings.Split(strings.TrimSpace(m.run(strings.Fields(args)...)), "\n") {
			fields := strings.Fields(line)
			if strings.Contains(line, "eth0") && !strings.Contains(args, "route") {
				continue // the machine's own
			}
			if len(fields) > 0 { // the number of the other end is of a device's birth
				fields[0], _, _ = strings.Cut(fields[0], "@")
			}
			if i := slices.IndexFunc(fields, isHardwareAddr); i >= 0 && slices.Contains(fields, "rookery0") {
				fields[i] = "-" // the kernel has thrown dice
			}
			out = append(out, args+": "+strings.Join(fields, " "))
		}
	}
	slices.Sort(out)
	return out
}

type object struct {
	kind, name, text string
	used             bool // a chain with rules
}

// objects are those of the table, each as text without its number.
func objects(m *machine, family string) (out []object) {
	m.lab.t.Helper()
	var all struct{ Nftables []map[string]map[string]any }
	if err := json.Unmarshal([]byte(m.run("nft", "-j", "list", "table", family, "rookery")), &all); err != nil {
		m.lab.t.Fatal(err)
	}
	used := map[string]bool{}
	for _, entry := range all.Nftables {
		for kind, o := range entry {
			if kind == "metainfo" {
				continue
			}
			delete(o, "handle")
			name, _ := o["name"].(string)
			if chain, ok := o["chain"].(string); ok {
				used[chain] = true
			}
			if elements, ok := o["elem"].([]any); ok {
				slices.SortFunc(elements, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
			if strings.HasPrefix(name, "refused-") {
				delete(o, "elem") // what the packet path fills
			}
			text, err := json.Marshal(o)
			if err != nil {
				m.lab.t.Fatal(err)
			}
			out = append(out, object{kind: kind, name: name, text: kind + " " + string(text)})
		}
	}
	for i := range out {
		out[i].used = used[out[i].name]
	}
	return out
}

func isHardwareAddr(s string) bool { _, err := net.ParseMAC(s); return err == nil }

func without(all, others []string) (out []string) {
	for _, s := range all {
		if !slices.Contains(others, s) {
			out = append(out, s)
		}
	}
	return out
}
