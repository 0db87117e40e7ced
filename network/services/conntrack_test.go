package services

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// step is what the change of a Service's endpoints leaves behind.
func step(t *testing.T, old, new string) *staleFlows {
	t.Helper()
	svc, udp, c := service(t, "d/dns 10.43.0.6 53/30053/udp"), map[frontend]endpoints{}, newComputer(self())
	endpoints := func(text string) (map[frontend]endpoints, change) {
		keys, now := those([]*corev1.Service{svc}, []*discoveryv1.EndpointSlice{slice(t, corev1.ProtocolUDP, "d/dns 5353 "+text)}, nil, alive)
		change := c.update(slices.Values(keys), now)
		return change.udp.apply(udp), change
	}
	endpoints(old)
	was, change := endpoints(new)
	return stale(was, udp, change)
}

func TestStaleFlows(t *testing.T) {
	const both, one = "10.42.1.2@a 10.42.2.2@b", "10.42.1.2@a"
	for _, test := range []struct {
		name     string
		old, new string
		proto    uint8
		to       string
		toPort   uint16
		by       string
		byPort   uint16
		want     bool
	}{
		{"endpoint left", both, one, unix.IPPROTO_UDP, "10.43.0.6", 53, "10.42.2.2", 5353, true},
		{"endpoint stays", both, one, unix.IPPROTO_UDP, "10.43.0.6", 53, "10.42.1.2", 5353, false},
		{"endpoint left, by node port", both, one, unix.IPPROTO_UDP, "192.168.1.1", 30053, "10.42.2.2", 5353, true},
		{"somebody else's flow to such a port", both, one, unix.IPPROTO_UDP, "192.168.1.9", 30053, "192.168.1.9", 30053, false},
		{"went nowhere before there were endpoints", "", one, unix.IPPROTO_UDP, "10.43.0.6", 53, "10.43.0.6", 53, true},
		{"TCP to an endpoint that left", both, one, unix.IPPROTO_TCP, "10.43.0.6", 53, "10.42.2.2", 5353, false},
		{"TCP to an endpoint that died", both, one + " 10.42.2.2@dead", unix.IPPROTO_TCP, "10.43.0.7", 80, "10.42.2.2", 8080, true},
		{"TCP to it not through a Service", both, one + " 10.42.2.2@dead", unix.IPPROTO_TCP, "10.42.2.2", 80, "10.42.2.2", 80, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := step(t, test.old, test.new)
			if s == nil {
				t.Fatal("nothing is looked for")
			}
			flow := &netlink.ConntrackFlow{
				Forward: netlink.IPTuple{Protocol: test.proto, DstIP: net.ParseIP(test.to), DstPort: test.toPort},
				Reverse: netlink.IPTuple{Protocol: test.proto, SrcIP: net.ParseIP(test.by), SrcPort: test.byPort},
			}
			if got := s.MatchConntrackFlow(flow); got != test.want {
				t.Errorf("deleted: %v, want %v", got, test.want)
			}
		})
	}
	if step(t, one, both) != nil {
		t.Error("a new endpoint among others leaves nothing behind")
	}
}
