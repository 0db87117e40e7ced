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

	"github.com/rundigitalplatform/rookery/network"
)

// However pods with host ports and peers have come and gone, the kernel is as after a
// fresh start with those that there are.
func TestWalkEndsAsAFreshStart(t *testing.T) {
	for _, backend := range []string{"vxlan", "direct"} {
		t.Run(backend, func(t *testing.T) {
			l := newLabOf(t, 1, backend, "46")
			h1 := l.hosts[0]
			h1.up()
			seed := rand.Uint64()
			t.Log("seed", seed)
			w := &walk{m: h1, rand: rand.New(rand.NewPCG(seed, 0)), pods: map[string]*pod{}, ports: map[int32]string{}}
			for range 2 {
				for range 12 {
					w.step()
				}
				var have []string
				w.fresh(func() { have = settled(h1) })
				// Not all that a start does is done when the daemon answers: the Services' rules come by themselves.
				eventually(t, patience, func() string {
					want := canonical(h1)
					if slices.Equal(have, want) {
						return ""
					}
					return fmt.Sprintf("after the walk, not after a fresh start:\n%s\nafter a fresh start, not after the walk:\n%s",
						strings.Join(without(have, want), "\n"), strings.Join(without(want, have), "\n"))
				})
			}
		})
	}
}

type walk struct {
	m     *machine
	rand  *rand.Rand
	count int
	pods  map[string]*pod
	ports map[int32]string // host ports, by whose they are
	peers []network.Peer
}

func (w *walk) step() {
	switch w.rand.IntN(5) {
	case 0, 1: // a pod comes, often with a host port
		w.count++
		uid := fmt.Sprint("pod", w.count)
		var ports []corev1.ContainerPort
		if host := 8000 + w.rand.Int32N(20); w.ports[host] == "" && w.rand.IntN(3) > 0 {
			w.ports[host] = uid
			proto := []corev1.Protocol{"TCP", "UDP"}[w.rand.IntN(2)]
			ip := []string{"", "0.0.0.0", "::", "fd77::1", "192.168.77.1", "127.0.0.1"}[w.rand.IntN(6)]
			ports = append(ports, port(ip, proto, host))
		}
		w.pods[uid] = w.m.pod(uid, ports...)
	case 2: // one goes
		if len(w.pods) == 0 {
			return
		}
		uids := slices.Sorted(maps.Keys(w.pods))
		uid := uids[w.rand.IntN(len(uids))]
		w.m.ask(request{Verb: "detach", UID: uid})
		delete(w.pods, uid)
		maps.DeleteFunc(w.ports, func(_ int32, of string) bool { return of == uid })
	default: // peers come, go, die and move
		w.peers = nil
		for i := 2; i <= 6; i++ {
			if w.rand.IntN(2) == 0 {
				continue
			}
			move := w.rand.IntN(2) * 100
			p := network.Peer{
				Name: fmt.Sprint("h", i), Endpoint: netip.AddrFrom4([4]byte{192, 168, 77, byte(i + move)}), Other: netip.MustParseAddr(fmt.Sprintf("fd77::%d", i+move)),
				Alive: w.rand.IntN(3) > 0,
			}
			for _, family := range "46" {
				p.PodCIDRs = append(p.PodCIDRs, ranges(family, i).PodCIDR)
			}
			w.peers = append(w.peers, p)
		}
		w.m.ask(request{Verb: "peers", Peers: w.peers})
	}
}

// fresh takes away all that the daemon has made in the kernel, after look, and starts the
// daemon anew; addresses and host ports are remembered on disk.
func (w *walk) fresh(look func()) {
	// A chain that is used no more goes a moment later.
	eventually(w.m.lab.t, patience, func() string {
		for _, f := range w.m.ranges {
			for _, o := range objects(w.m, string(f.Table())) {
				if o.kind == "chain" && strings.HasPrefix(o.name, "hostport-") && !o.used {
					return "the chain " + o.name + " is still there"
				}
			}
		}
		return ""
	})
	look()
	w.m.kill()
	for _, f := range w.m.ranges {
		w.m.run("nft", "delete", "table", string(f.Table()), "rookery")
	}
	for _, line := range strings.Split(strings.TrimSpace(w.m.run("ip", "-br", "link")), "\n") {
		name, _, _ := strings.Cut(strings.Fields(line)[0], "@")
		if strings.HasPrefix(name, "rk") || strings.HasPrefix(name, "rookery") {
			w.m.run("ip", "link", "delete", name)
		}
	}
	for _, args := range []string{"ip route flush proto 82", "ip route flush proto 83", "ip -6 route flush proto 82", "ip -6 route flush proto 83"} {
		w.m.run(strings.Fields(args)...)
	}
	w.m.up()
	w.m.ask(request{Verb: "peers", Peers: w.peers})
	for uid, p := range w.pods {
		w.m.ask(request{Verb: "attach", UID: uid, PID: p.pid, Ports: p.ports})
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
