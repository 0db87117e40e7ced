package services

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// After each of hundreds of changes of Services, endpoints, weights and living peers the
// kernel's rules are those of a fresh start.
func TestWalkInTheKernel(t *testing.T) {
	for _, self := range []Self{self(), self6()} {
		t.Run(string(self.family()), func(t *testing.T) { walk(t, self) })
	}
}

func walk(t *testing.T, self Self) {
	nfttest.Namespace(t)
	r := rand.New(rand.NewPCG(5, 6))
	services, endpoints := map[int]*corev1.Service{}, map[int][]*discoveryv1.EndpointSlice{}
	dead := map[string]bool{}
	split := func(svc *corev1.Service) *Split {
		if svc.Annotations["few"] == "" {
			return nil
		}
		return &Split{
			Weights: map[string]int{"odd": 5, "even": 95},
			Group: func(e discoveryv1.Endpoint) string {
				return map[bool]string{true: "odd", false: "even"}[strings.ContainsAny(e.Addresses[0][len(e.Addresses[0])-1:], "13579")]
			},
		}
	}
	c, got := newComputer(self), desired(nil, nil, split, alive, self) // these remember; the fresh start does not
	nfttest.Walk(t, self.family(), 150, func(int) (nft.State, *nft.Patch) {
		i := r.IntN(8)
		changed := []string{fmt.Sprintf("d/s%d", i)}
		switch r.IntN(7) {
		case 0:
			delete(services, i)
		case 1:
			delete(endpoints, i)
		case 2:
			node := []string{"b", "c"}[r.IntN(2)]
			dead[node] = !dead[node]
			changed = nil // all are asked
		case 3, 4:
			svc := service(t, fmt.Sprintf("d/s%d 10.43.1.%d 80/%d%s%s", i, i+1, 30000+r.IntN(9), []string{"", "/udp"}[r.IntN(2)], []string{"", " external-local", " internal-local", " sticky"}[r.IntN(4)]))
			if r.IntN(3) == 0 {
				svc.Annotations = map[string]string{"few": "5"}
			}
			if r.IntN(3) == 0 {
				svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: fmt.Sprintf("192.0.2.%d", 1+r.IntN(3))}, {IP: fmt.Sprintf("2001:db8::%d", 1+r.IntN(3))}}
				svc.Spec.LoadBalancerSourceRanges = [][]string{nil, {"203.0.113.0/24"}, {"198.51.100.0/24", "198.51.100.7/32", "2001:db8:1::/48", "2001:db8:1:7::/64"}}[r.IntN(3)]
			}
			if r.IntN(4) > 0 {
				svc, _ = dual(svc, nil)
			}
			services[i] = svc
		default:
			text := fmt.Sprintf("d/s%d %d", i, 8080+r.IntN(2))
			for range r.IntN(5) {
				text += fmt.Sprintf(" 10.42.1.%d@%s=%s", 2+r.IntN(9), []string{"here", "b", "c"}[r.IntN(3)], []string{"ready", "ready", "serving", "unready"}[r.IntN(4)])
			}
			proto := corev1.ProtocolTCP
			if svc := services[i]; svc != nil {
				proto = svc.Spec.Ports[0].Protocol
			}
			_, endpoints[i] = dual(nil, slice(t, proto, text))
		}
		var all []*corev1.Service
		var of []*discoveryv1.EndpointSlice
		for i := range 8 {
			if services[i] != nil {
				all = append(all, services[i])
			}
			of = append(of, endpoints[i]...)
		}
		lives := func(node string) bool { return !dead[node] }
		keys, now := those(all, of, split, lives)
		if changed == nil {
			changed = keys
		}
		change := c.update(slices.Values(changed), now)
		got.apply(change)
		want := desired(all, of, split, lives, self)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("what is remembered is not what is:\n%v, want\n%v", got, want)
		}
		return want.rules, &change.rules
	})
}

// BenchmarkOneEndpoint changes one endpoint among many Services and writes it to the kernel:
// it is replaced by another, or there is one more, and then one less.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{10, 1000, 5000} {
		b.Run(fmt.Sprintf("replaced/%d", n), func(b *testing.B) { benchmarkOneEndpoint(b, n, "") })
		b.Run(fmt.Sprintf("more-or-less/%d", n), func(b *testing.B) { benchmarkOneEndpoint(b, n, "", " 10.42.9.9@c") })
	}
}

// benchmarkOneEndpoint gives the Service these endpoints in turn, beside a new one.
func benchmarkOneEndpoint(b *testing.B, n int, more ...string) {
	nfttest.Namespace(b)
	table, err := nft.Open(knftables.IPv4Family, "rookery", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	services, endpointSlices := many(b, n)
	f := &family{self: self(), udp: map[frontend]endpoints{}, health: map[uint16]health{}}
	keys, now := those(services, endpointSlices, nil, alive)
	if _, err := f.write(b.Context(), kernel{table}, "services", slices.Values(keys), now); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	of := now.slices
	for i := 0; b.Loop(); i++ {
		// What was replaced is freed once all processors have let go of it, and the next one waits for that.
		b.StopTimer()
		time.Sleep(50 * time.Millisecond)
		b.StartTimer()
		changed := []*discoveryv1.EndpointSlice{slice(b, corev1.ProtocolTCP, fmt.Sprintf("d/s0007 8080 10.42.1.%d@a%s", 2+i%200, more[i%len(more)]))}
		now.slices = func(key string) []*discoveryv1.EndpointSlice {
			if key == "d/s0007" {
				return changed
			}
			return of(key)
		}
		if _, err := f.write(b.Context(), kernel{table}, "services", slices.Values([]string{"d/s0007"}), now); err != nil {
			b.Fatal(err)
		}
	}
}

// kernel is the Rules of one family.
type kernel struct{ *nft.Table }

func (k kernel) Apply(ctx context.Context, _ knftables.Family, section string, state nft.State) error {
	return k.Set(ctx, section, state)
}

func (k kernel) Patch(ctx context.Context, _ knftables.Family, section string, patch nft.Patch) error {
	return k.Table.Patch(ctx, section, patch)
}
