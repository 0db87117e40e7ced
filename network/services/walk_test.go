package services

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

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
	var c computer // remembers; the fresh start does not
	nfttest.Walk(t, self.family(), 150, func(int) nft.State {
		i := r.IntN(8)
		switch r.IntN(7) {
		case 0:
			delete(services, i)
		case 1:
			delete(endpoints, i)
		case 2:
			node := []string{"b", "c"}[r.IntN(2)]
			dead[node] = !dead[node]
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
		got, want := c.desired(all, byService(of), split, lives, self), desired(all, of, split, lives, self)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("what is remembered is not what is:\n%v, want\n%v", got, want)
		}
		return got.rules
	})
}

// BenchmarkOneEndpoint changes one endpoint among many Services and writes it to the kernel.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range []int{10, 1000, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			nfttest.Namespace(b)
			table, err := nft.Open(knftables.IPv4Family, "rookery", slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			services, endpointSlices := objects(b, n)
			var c computer
			set := func() {
				if err := table.Set(b.Context(), "services", c.desired(services, byService(endpointSlices), nil, alive, self()).rules); err != nil {
					b.Fatal(err)
				}
			}
			set()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				endpointSlices[7] = slice(b, corev1.ProtocolTCP, fmt.Sprintf("d/s0007 8080 10.42.1.%d@a", 2+i%200))
				set()
			}
		})
	}
}
