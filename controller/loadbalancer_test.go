package controller

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestAssign(t *testing.T) {
	pool := []AddressRange{must(t, "192.0.2.1-192.0.2.2"), must(t, "192.0.2.9")}
	age := 0
	lb := func(name, has, wants string, class *string) *corev1.Service {
		age++
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(int64(age), 0))}}
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
		s.Spec.Type, s.Spec.LoadBalancerIP, s.Spec.LoadBalancerClass = corev1.ServiceTypeLoadBalancer, wants, class
		if has != "" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: has}}
		}
		return s
	}
	for _, c := range []struct {
		name     string
		services []*corev1.Service
		want     []string // an address, "!" for a refusal, "" for not ours
	}{
		{"the first free ones", []*corev1.Service{lb("a", "", "", nil), lb("b", "", "", nil)}, []string{"192.0.2.1", "192.0.2.2"}},
		{"who has one keeps it, also against an older one", []*corev1.Service{lb("a", "", "", nil), lb("b", "192.0.2.1", "", nil)}, []string{"192.0.2.2", "192.0.2.1"}},
		{"a wish comes before any other", []*corev1.Service{lb("a", "", "", nil), lb("b", "", "192.0.2.1", nil)}, []string{"192.0.2.2", "192.0.2.1"}},
		{"a wish for what another has", []*corev1.Service{lb("a", "192.0.2.1", "", nil), lb("b", "192.0.2.2", "192.0.2.1", nil)}, []string{"192.0.2.1", "!"}},
		{"a wish outside the pool", []*corev1.Service{lb("a", "", "192.0.2.77", nil)}, []string{"!"}},
		{"a wish outside the pool takes nothing from others", []*corev1.Service{lb("a", "192.0.2.1", "192.0.2.77", nil), lb("b", "", "nonsense", nil), lb("c", "", "fd00::1", nil), lb("d", "", "", nil)}, []string{"!", "!", "!", "192.0.2.1"}},
		{"a wish that was granted", []*corev1.Service{lb("a", "192.0.2.9", "192.0.2.9", nil)}, []string{"192.0.2.9"}},
		{"an address that left the pool", []*corev1.Service{lb("a", "192.0.2.77", "", nil), lb("b", "192.0.2.1", "", nil)}, []string{"192.0.2.2", "192.0.2.1"}},
		{"two with the same", []*corev1.Service{lb("a", "192.0.2.9", "", nil), lb("b", "192.0.2.9", "", nil)}, []string{"192.0.2.9", "192.0.2.1"}},
		{"exhausted", []*corev1.Service{lb("a", "", "", nil), lb("b", "", "", nil), lb("c", "", "", nil), lb("d", "", "", nil)}, []string{"192.0.2.1", "192.0.2.2", "192.0.2.9", "!"}},
		{"classes", []*corev1.Service{lb("a", "", "", ptr.To("example.com/other")), lb("b", "", "", ptr.To(LoadBalancerClass))}, []string{"", "192.0.2.1"}},
		{"other types", []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}, []string{""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := assign(c.services, pool)
			for i, s := range c.services {
				v, ours := got[s]
				switch want := c.want[i]; want {
				case "":
					if ours {
						t.Errorf("%s got %v", s.Name, v)
					}
				case "!":
					if v.refusal == "" || len(v.addrs) > 0 {
						t.Errorf("%s was not refused: %v", s.Name, v)
					}
				default:
					if len(v.addrs) != 1 || v.addrs[0] != netip.MustParseAddr(want) {
						t.Errorf("%s got %v, want %s", s.Name, v, want)
					}
				}
			}
		})
	}
}

// A Service gets an address of each of its families, in its own order, as far as the pool
// has them.
func TestAssignFamilies(t *testing.T) {
	four, six := must(t, "192.0.2.1-192.0.2.2"), must(t, "2001:db8::1-2001:db8::2")
	lb := func(has string, wish string, families ...corev1.IPFamily) *corev1.Service {
		s := &corev1.Service{}
		s.Spec.Type, s.Spec.IPFamilies, s.Spec.LoadBalancerIP = corev1.ServiceTypeLoadBalancer, families, wish
		for _, ip := range strings.Fields(has) {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		return s
	}
	for _, c := range []struct {
		name    string
		svc     *corev1.Service
		pool    []AddressRange
		want    string
		refused bool
	}{
		{"both", lb("", "", corev1.IPv6Protocol, corev1.IPv4Protocol), []AddressRange{four, six}, "[2001:db8::1 192.0.2.1]", false},
		{"both are kept", lb("192.0.2.2 2001:db8::2", "", corev1.IPv4Protocol, corev1.IPv6Protocol), []AddressRange{four, six}, "[192.0.2.2 2001:db8::2]", false},
		{"one family", lb("", "", corev1.IPv6Protocol), []AddressRange{four, six}, "[2001:db8::1]", false},
		{"a pool of one family", lb("", "", corev1.IPv4Protocol, corev1.IPv6Protocol), []AddressRange{four}, "[192.0.2.1]", false},
		{"a pool of the other", lb("", "", corev1.IPv6Protocol), []AddressRange{four}, "[]", true},
		{"a wish for one of them", lb("", "2001:db8::2", corev1.IPv4Protocol, corev1.IPv6Protocol), []AddressRange{four, six}, "[192.0.2.1 2001:db8::2]", false},
		{"a wish for another family's", lb("", "2001:db8::2", corev1.IPv4Protocol), []AddressRange{four, six}, "[]", true},
		{"nonsense", lb("", "nonsense", corev1.IPv4Protocol), []AddressRange{four, six}, "[]", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := assign([]*corev1.Service{c.svc}, c.pool)[c.svc]
			if got := fmt.Sprint(v.addrs); got != c.want || (v.refusal != "") != c.refused {
				t.Errorf("got %s (%s), want %s", got, v.refusal, c.want)
			}
		})
	}
}

func must(t *testing.T, text string) AddressRange {
	t.Helper()
	r, err := ParseAddressRange(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParseAddressRange(t *testing.T) {
	if r := must(t, "192.0.2.240/28"); r.First.String() != "192.0.2.240" || r.Last.String() != "192.0.2.255" {
		t.Error(r)
	}
	if r := must(t, "10.1.2.3/8"); r.First.String() != "10.0.0.0" || r.Last.String() != "10.255.255.255" {
		t.Error(r)
	}
	if r := must(t, "192.0.2.7/32"); r.First != r.Last || r.Last.String() != "192.0.2.7" {
		t.Error(r)
	}
	if r := must(t, "fd00::10-fd00::1f"); r.First.String() != "fd00::10" || r.Last.String() != "fd00::1f" || r.Family() != corev1.IPv6Protocol {
		t.Error(r)
	}
	if r := must(t, "fd00:1:2:3::/63"); r.First.String() != "fd00:1:2:2::" || r.Last.String() != "fd00:1:2:3:ffff:ffff:ffff:ffff" {
		t.Error(r)
	}
	for _, bad := range []string{"", "x", "192.0.2.9-192.0.2.1", "192.0.2.1-", "192.0.2.1-fd00::1", "fe80::1", "fd00::1%eth0", "::ffff:192.0.2.1"} {
		if r, err := ParseAddressRange(bad); err == nil {
			t.Errorf("%q is read as %v", bad, r)
		}
	}
}
